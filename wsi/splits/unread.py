"""What a split file names that nobody knows: slides, and words that are no part; told together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from wsi.cohorts.table import without_extension
from wsi.findings import Finding, few
from wsi.registry import suggest

_PARTS = ("train", "val", "test")


def but_for_extension(known: Collection[str]) -> Callable[[str], str]:
    """Return what gives the known id that a slide means, `x` for `x.svs` or the other way round.

    An id that could mean several, or none, stays what it is.
    """
    stems: dict[str, list[str]] = {}
    for slide_id in known:
        stems.setdefault(without_extension(slide_id), []).append(slide_id)

    def meant(slide: str) -> str:
        found = [slide] if slide in known else stems.get(without_extension(slide), [])
        return found[0] if len(found) == 1 else slide

    return meant


def unknown_slides(
    slides: Iterable[str], known: Iterable[str], lines: Mapping[str, int] | None = None
) -> Iterator[Finding]:
    """Yield slides that are not in the cohort; those that begin an id of it may be cut short.

    Args:
        lines: of the table, by slide, where there are any.
    """
    known = sorted(known)
    begins = {slide: _longer(slide, known) for slide in slides}
    cut = {slide: ids for slide, ids in begins.items() if ids}
    rest = [slide for slide in begins if slide not in cut]
    if cut:
        listed = few(f"'{slide}' of {few(ids, 2)}" for slide, ids in cut.items())
        what = f"{_counted(list(cut), lines)} not in the cohort and begin ids of it: {listed}"
        yield _unknown(f"{what} — cut short?", list(cut), lines)
    if len(rest) == 1 and lines:
        near = suggest(rest[0], known)
        yield _unknown(f"line {lines[rest[0]]}: unknown slide '{rest[0]}'{near}", rest, lines)
    elif rest:
        near = suggest(rest[0], known)
        what = f"{_counted(rest, lines)} not in the cohort: {few(rest)}{near}"
        yield _unknown(what, rest, lines)


def unread_parts(found: Mapping[str, Sequence[tuple[str, int]]]) -> Iterator[Finding]:
    """Yield words that are no part, each once.

    Args:
        found: slide and line of every row with the word.
    """
    for word, rows in found.items():
        slides = tuple(dict.fromkeys(slide for slide, _ in rows))
        lines = [line for _, line in rows]
        where = f"line {lines[0]}" if len(lines) == 1 else f"lines {few(map(str, lines))}"
        many = f"in {len(lines)} rows " if len(lines) > 1 else ""
        message = f"{where}: unknown part '{word}'{suggest(word.lower(), _PARTS)} {many}"
        message += f"for {'slide' if len(slides) == 1 else 'slides'} {few(slides)}"
        message += " — use train, val, test"
        yield Finding("error", "unknown-part", message, slides, lines[0])


def _longer(slide: str, known: Sequence[str]) -> list[str]:
    """Return the sorted ids that begin with `slide` and go on."""
    at = bisect_right(known, slide)
    found = []
    while slide and at < len(known) and known[at].startswith(slide):
        found.append(known[at])
        at += 1
    return found


def _counted(slides: Sequence[str], lines: Mapping[str, int] | None) -> str:
    where = ""
    if lines:
        numbers = few(str(lines[slide]) for slide in slides)
        where = f"{'line' if len(slides) == 1 else 'lines'} {numbers}: "
    return where + ("1 slide is" if len(slides) == 1 else f"{len(slides)} slides are")


def _unknown(message: str, slides: Sequence[str], lines: Mapping[str, int] | None) -> Finding:
    line = lines[slides[0]] if lines else None
    return Finding("error", "unknown-slide", message, tuple(slides), line)
