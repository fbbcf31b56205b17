"""Tables for a paper: the same cells as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from wsi.report.cells import MINUS
from wsi.report.markdown import escaped

_ESCAPED = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {MINUS: "$-$", "<": "$<$", ">": "$>$"}
)


def as_markdown(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    notes: Sequence[str] = (),
) -> str:
    """Return a Markdown table with what it is, and a list of notes, under it."""
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
    told = "".join(f"\n- {escaped(note)}" for note in notes)
    return f"{table}\n\n{caption}\n" + (f"{told}\n" if told else "")


def as_latex(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    notes: Sequence[str] = (),
) -> str:
    """Return the same table for LaTeX with booktabs, the caption and notes as comments."""
    lines = [f"{' & '.join(cell.translate(_ESCAPED) for cell in row)} \\\\" for row in rows]
    head = f"{' & '.join(cell.translate(_ESCAPED) for cell in columns)} \\\\"
    top = [r"\begin{tabular}{l" + "r" * (len(columns) - 1) + "}", r"\toprule", head, r"\midrule"]
    # Escaped, so that a note can be taken into the text, and on one line, or it would leave the %.
    told = [f"% note: {' '.join(note.split()).translate(_ESCAPED)}" for note in notes]
    end = [r"\bottomrule", r"\end{tabular}", f"% {caption}", *told]
    return "\n".join([*top, *lines, *end]) + "\n"
