"""Text and tables as Markdown that shows just their characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from markupsafe import Markup

from wsi.report.cells import Cell, Table

# Entities where a backslash would not do: inside HTML, and in the cells of some renderers.
_ESCAPED = {c: f"\\{c}" for c in "\\`*_[]#~$"} | {
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    "|": "&#124;",
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPED)))


def escaped(value: object) -> str:
    """Return a value on one line, without markup of its own; `Markup` is Markdown already."""
    if isinstance(value, Markup):
        return str(value)
    return _SPECIAL.sub(lambda found: _ESCAPED[found[0]], " ".join(str(value).split()))


def table_text(table: Table, say: Callable[[str], str] = str) -> Markup:
    """Return a table with its caption above and its footnotes below.

    Args:
        say: what becomes of the text of a footnote.
    """
    rows = [map(_cell, row) for row in (*table.rows, *table.summary)]
    heads = [escaped(name or "Setting") for name in table.columns]
    lines = [f"{escaped(table.caption)}:", "", _line(heads), _line(["---"] * len(heads))]
    lines += map(_line, rows)
    notes = [f"{k}. {escaped(say(note))}" for k, note in enumerate(table.notes, 1)]
    return Markup("\n".join([*lines, "", *notes]).rstrip() + "\n")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    notes = f" ({', '.join(map(str, cell.notes))})" if cell.notes else ""
    remark = f" **{escaped(cell.remark)}**" if cell.remark else ""
    return f"{escaped(cell.text)}{notes}{remark}"
