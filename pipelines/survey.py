"""What every slide of an archive is, before anything is computed from its pixels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.console import Console
from pipelines.slides_csv import (
    Row,
    Surveyed,
    changed_by_hand,
    given_mpp,
    read_slides_csv,
    recalled,
    settings_key,
    write_slides_csv,
)
from wsi.cohorts import read_slide_table
from wsi.cohorts.cells import read_table
from wsi.errors import CohortError, ConfigError, SlideError
from wsi.files import check_slide_id
from wsi.findings import few
from wsi.slides import FileStamp, SlideFile, open_slide, search_archive, stamp_of
from wsi.slides.resolution import TABLE_WINS
from wsi.specs import SlidesSpec
from wsi.supervision import BUG, CRASH, KILLED, MEMORY, Crew, Lost

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
SETTLING = "still-being-written"
"""Status of a slide that is being copied; it is looked at again by the next run."""

_KEEP_S = 30.0  # how often what was found so far is kept, for a run that is stopped


@dataclass(frozen=True)
class Sources:
    """The slides that a user has named.

    Attributes:
        files: the slides, in the order of tables, then by id.
        rows: what a slides.csv among the sources says, by path.
        ignored: how many files are no slides, by suffix.
        closed: folders that may not be read.
    """

    files: tuple[SlideFile, ...]
    rows: Mapping[str, Row] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    closed: tuple[Path, ...] = ()


def listed_slides(sources: Iterable[Path]) -> Sources:
    """Return the slides of folders, files, and tables with a path column.

    Raises:
        ConfigError: a source does not exist, or one id stands in two of them.
        CohortError: a table is malformed.
    """
    files: list[SlideFile] = []
    rows: dict[str, Row] = {}
    plain: list[Path] = []
    for source in sources:
        if source.suffix.lower() in TABLE_SUFFIXES and source.is_file():
            listed, known = _from_table(source)
            files += listed
            rows |= known
        else:
            plain.append(source)
    archive = search_archive(plain)
    files += archive.slides
    twins = [slide_id for slide_id, n in Counter(f.slide_id for f in files).items() if n > 1]
    if twins:
        raise ConfigError(
            f"{len(twins)} slide ids occur in several of the paths given, e.g. '{twins[0]}' — "
            "name every slide once"
        )
    return Sources(tuple(files), rows, archive.ignored, archive.closed)


def _from_table(path: Path) -> tuple[list[SlideFile], dict[str, Row]]:
    """Return the slides of a table, and its rows by path where it is one that a survey wrote."""
    rows = read_slide_table(path)
    table = read_table(path)
    ours = "resolved_with" in table.columns
    cells = {line.number: line.cells for line in table.lines} if ours else {}
    files = [
        SlideFile(
            row.slide_id,
            row.path or path.parent / row.slide_id,
            given_mpp(cells[row.line]) if ours else row.mpp,
            row.site or "",
            row.tissue,
        )
        for row in rows
    ]
    known = {_key(f): cells[row.line] for f, row in zip(files, rows, strict=True)} if ours else {}
    return files, known


def survey(
    sources: Sources,
    spec: SlidesSpec,
    console: Console,
    crew: Crew,
    *,
    settle: float = 0.0,
    slides_csv: Path | None = None,
    keep: bool = True,
    recheck: bool = False,
) -> list[Surveyed]:
    """Return every slide's facts, in the order of `sources`, for any number of jobs.

    A slide that cannot be opened is a row, not an error. A file that is as `slides_csv` or a
    slides.csv among the sources knows it is not opened.

    Args:
        crew: the children that open slides.
        settle: a file that changed less than so many seconds ago counts as being written.
        slides_csv: read before, and written when done; now and then also before that.
        keep: False leaves `slides_csv` as it is.
        recheck: open all slides, whatever is known of them.

    Raises:
        ConfigError: `slides_csv` is something else, or its resolutions were edited.
    """
    earlier = _earlier_rows(slides_csv, sources)
    known = () if recheck else (sources.rows, earlier)
    found: dict[int, Surveyed] = {}
    todo: list[tuple[int, SlideFile, FileStamp | None]] = []
    for index, file in enumerate(sources.files):
        stamp = stamp_of(file.path)
        item = _settling(file, stamp, settle) or _recalled(file, stamp, spec, *known)
        if item is not None:
            found[index] = item
        else:
            todo.append((index, file, stamp))
    _tell_what_is_known(sources, len(todo), {**earlier, **sources.rows}, console)
    last = time.monotonic()
    with console.progress("opening slides", len(todo)) as track:
        for index, item in _looked_at(todo, spec, crew):
            found[index] = item
            track.advance()
            if slides_csv and keep and time.monotonic() - last > _KEEP_S:
                write_slides_csv(found.values(), slides_csv)
                last = time.monotonic()
    everything = [found[index] for index in range(len(sources.files))]
    if slides_csv and keep:
        kept = write_slides_csv(everything, slides_csv)
        if kept:
            console.say(f"{slides_csv.name} keeps {kept} slides that are not in this run")
    return everything


def _key(file: SlideFile) -> str:
    return str(file.path.absolute())


def _earlier_rows(slides_csv: Path | None, sources: Sources) -> dict[str, Row]:
    """Return the rows of an earlier survey by path; an edit of them must not get lost."""
    if slides_csv is None:
        return {}
    rows = {row["path"]: row for row in read_slides_csv(slides_csv)}
    edited = [
        file.slide_id
        for file in sources.files
        if (row := rows.get(_key(file))) and changed_by_hand(row) and given_mpp(row) != file.mpp
    ]
    if edited:
        raise ConfigError(
            f"{slides_csv}: the mpp of {few(edited)} was changed by hand — give the table as the "
            "slides to use it (--slides), or remove it"
        )
    return rows


def _settling(file: SlideFile, stamp: FileStamp | None, settle: float) -> Surveyed | None:
    # A clock that is far ahead must not keep a slide waiting until that time has come.
    if stamp is None or abs(time.time() - stamp.mtime_ns / 1e9) >= settle:
        return None
    reason = f"changed less than {settle:g} s ago — run again when it is copied"
    return Surveyed(file, None, SETTLING, reason, stamp)


def _recalled(
    file: SlideFile, stamp: FileStamp | None, spec: SlidesSpec, *known: Mapping[str, Row]
) -> Surveyed | None:
    settings = settings_key(file, spec)
    for rows in known:
        row = rows.get(_key(file))
        item = recalled(row, file, stamp, settings) if row else None
        if item is not None:
            return item
    return None


def _tell_what_is_known(
    sources: Sources, opened: int, rows: Mapping[str, Row], console: Console
) -> None:
    if not rows or not opened:
        return
    seen = sum(_key(file) in rows for file in sources.files)
    console.say(
        f"{len(sources.files) - opened} of {len(sources.files)} slides are as slides.csv knows "
        f"them; {opened} are opened (new, changed, bad before, or under other settings)"
        if seen
        else f"none of these slides is in slides.csv yet; {opened} are opened"
    )


Todo = Sequence[tuple[int, SlideFile, FileStamp | None]]


def _looked_at(todo: Todo, spec: SlidesSpec, crew: Crew) -> Iterator[tuple[int, Surveyed]]:
    """Yield what each slide is; one that makes its reader crash or hang is known by that."""
    again: list[tuple[int, SlideFile, FileStamp | None]] = []
    for slide, found in crew.each(_look, todo, spec):
        if isinstance(found, Lost) and found.reason in (CRASH, KILLED, MEMORY):
            again.append(slide)  # perhaps the slide before has spoilt its reader's memory
        else:
            yield slide[0], _surveyed(slide, found)
    for slide, found in crew.each(_look, again, spec):
        yield slide[0], _surveyed(slide, found)


def _look(todo: tuple[int, SlideFile, FileStamp | None], spec: SlidesSpec) -> Surveyed:
    _, file, stamp = todo
    return survey_one(file, spec, stamp)


def _surveyed(slide: tuple[int, SlideFile, FileStamp | None], found: Surveyed | Lost) -> Surveyed:
    if isinstance(found, Surveyed):
        return found
    _, file, stamp = slide
    reason = "open-failed" if found.reason == BUG else found.reason
    text = f"{file.path.name}: {found.message} — copy it again from its source, or convert it"
    return Surveyed(file, None, reason, text, stamp)


def survey_one(file: SlideFile, spec: SlidesSpec, stamp: FileStamp | None = None) -> Surveyed:
    """Return one slide's facts.

    Args:
        stamp: of the file when it was first seen; one that changed since is being written.
    """
    try:
        check_slide_id(file.slide_id)
        str(file.path).encode()
    except (CohortError, UnicodeEncodeError) as error:
        path = Path(_printable(str(file.path)))
        shown = replace(file, slide_id=_printable(file.slide_id), path=path)
        reason = str(error)
        if isinstance(error, UnicodeEncodeError):
            reason = f"{path} has bytes that are no text — rename the folder"
        return Surveyed(shown, None, "unusable-name", reason)
    found = _opened(file, spec)
    if stamp is not None and stamp_of(file.path) != stamp:
        reason = f"{file.path.name} changes while it is looked at — run again when it is copied"
        return Surveyed(file, None, SETTLING, reason, stamp)
    return replace(found, stamp=stamp, settings=settings_key(file, spec))


def _opened(file: SlideFile, spec: SlidesSpec) -> Surveyed:
    try:
        with open_slide(file.path, file.slide_id, mpp=file.mpp, spec=spec) as slide:
            info = slide.info
    except SlideError as error:
        return Surveyed(file, None, error.reason, str(error))
    except OSError as error:
        reason = f"{file.path.name} cannot be read ({error.strerror}) — check the file and its disk"
        return Surveyed(file, None, "io-error", reason)
    status = "ok" if info.mpp_state == "ok" else info.mpp_state
    return Surveyed(file, info, status, "; ".join(info.notes))


def unresolved_lines(found: Sequence[Surveyed]) -> list[str]:
    """Return one line per problem: status, the slides that share it, and what to do."""
    bad = [item for item in found if item.status != "ok"]
    return _grouped(bad, lambda item: f"{item.status}: ")


def note_lines(found: Sequence[Surveyed]) -> list[str]:
    """Return what is to be known of slides that are ready, and how often a table outranks them."""
    noted = [item for item in found if item.status == "ok" and item.reason]
    lines = [f"note: {line}" for line in _grouped(noted, lambda item: "")]
    outranked = sum(TABLE_WINS in item.reason for item in noted)
    if outranked:
        lines.append(
            f"mpp taken from the table against the slide's own metadata: {outranked} in all"
        )
    return lines


def _grouped(items: Sequence[Surveyed], head: Callable[[Surveyed], str]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        groups.setdefault((head(item), item.reason), []).append(item.file.slide_id)
    return [
        f"{begin}{ids[0]}: {reason}"
        if len(ids) == 1
        else f"{begin}{len(ids)} slides ({few(ids)}): {reason}"
        for (begin, reason), ids in groups.items()
    ]


def tell_passed_over(sources: Sources, console: Console) -> None:
    """Say what the search for slides left aside: `ignored 12 files: 10 .txt, 2 .xml`."""
    for folder in sources.closed:
        console.warn(f"{folder}: this folder may not be read — slides in it are not in this run")
    if sources.ignored:
        counts = ", ".join(f"{n} {word}" for word, n in sources.ignored.items())
        console.say(f"ignored {sum(sources.ignored.values())} files: {counts}")


def _printable(text: str) -> str:
    """Return `text` for tables and logs: line breaks, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
