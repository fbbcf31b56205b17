"""Tables for a paper: the same cells as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from wsi.report.cells import MINUS

_ESCAPED = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {MINUS: "$-$", "<": "$<$"}
)


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a Markdown table with what it is under it."""
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
    return f"{table}\n\n{caption}\n"


def as_latex(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return the same table for LaTeX with booktabs, the caption as a comment."""
    lines = [f"{' & '.join(cell.translate(_ESCAPED) for cell in row)} \\\\" for row in rows]
    head = f"{' & '.join(cell.translate(_ESCAPED) for cell in columns)} \\\\"
    top = [r"\begin{tabular}{l" + "r" * (len(columns) - 1) + "}", r"\toprule", head, r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}", f"% {caption}"]
    return "\n".join([*top, *lines, *end]) + "\n"
