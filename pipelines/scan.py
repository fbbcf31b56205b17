"""`wsi scan`: what each slide is, before anything is computed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import Console
from wsi.cohorts import read_slide_table
from wsi.errors import CohortError, SlideError
from wsi.files import check_slide_id, publish_bytes
from wsi.findings import few
from wsi.slides import SlideFile, SlideInfo, find_slides, open_slide
from wsi.specs import SlidesSpec

COLUMNS: tuple[str, ...] = (
    "slide_id",
    "path",
    "vendor",
    "width",
    "height",
    "levels",
    "mpp",
    "mpp_source",
    "magnification",
    "status",
    "reason",
)
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")


@dataclass(frozen=True)
class Surveyed:
    """One slide as found: its facts, or why it cannot be used.

    Attributes:
        status: `ok`, or the word that quarantine.csv uses: `no-mpp`, `open-failed`, ...
        reason: one line for people, with what to do next.
    """

    file: SlideFile
    info: SlideInfo | None
    status: str
    reason: str

    def row(self) -> dict[str, str]:
        """Return the row of slides.csv."""
        info = self.info
        facts = {"slide_id": self.file.slide_id, "path": str(self.file.path)}
        if info is not None:
            facts |= {
                "vendor": info.vendor,
                "width": str(info.size0[0]),
                "height": str(info.size0[1]),
                "levels": str(len(info.level_sizes)),
                "mpp": "" if info.mpp is None else _mpp_text(info.mpp),
                "mpp_source": info.mpp_source,
                "magnification": f"{info.magnification:g}" if info.magnification else "",
            }
        facts |= {"status": self.status, "reason": self.reason}
        return {column: facts.get(column, "") for column in COLUMNS}


def listed_slides(sources: Iterable[Path]) -> list[SlideFile]:
    """Return the slides of folders, files, and tables with a path column.

    Raises:
        ConfigError: a source does not exist.
        CohortError: a table is malformed.
    """
    files: list[SlideFile] = []
    plain: list[Path] = []
    for source in sources:
        if source.suffix.lower() in TABLE_SUFFIXES and source.is_file():
            files += _from_table(source)
        else:
            plain.append(source)
    return files + find_slides(plain)


def survey(files: Sequence[SlideFile], spec: SlidesSpec, console: Console) -> list[Surveyed]:
    """Return every slide's facts; a slide that cannot be opened is a row, not an error."""
    with console.progress("opening slides", len(files)) as track:
        found = []
        for file in files:
            found.append(survey_one(file, spec))
            track.advance()
    return found


def survey_one(file: SlideFile, spec: SlidesSpec) -> Surveyed:
    """Return one slide's facts."""
    try:
        check_slide_id(file.slide_id)
    except CohortError as error:
        shown = SlideFile(_printable(file.slide_id), Path(_printable(str(file.path))))
        return Surveyed(shown, None, "unusable-name", str(error))
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


def write_slides_csv(found: Sequence[Surveyed], path: Path) -> None:
    """Write the table of slides to `path`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(item.row() for item in found)
    publish_bytes(path, text.getvalue().encode())


def run(paths: Sequence[Path], out: Path | None, spec: SlidesSpec, console: Console) -> int:
    """Print (and write) what every slide is; 3 when one is unreadable or unresolved."""
    files = listed_slides(paths)
    if not files:
        console.warn(f"no slides below {', '.join(str(p) for p in paths)} — check the path")
        return 3
    found = survey(files, spec, console)
    rows = [item.row() for item in found]
    shown = [c for c in COLUMNS if c not in ("path", "reason")]
    console.table(shown, ([row[c] for c in shown] for row in rows), "slides")
    console.result(rows)
    bad = [item for item in found if item.status != "ok"]
    for line in unresolved_lines(found):
        console.say(line)
    for item in found:
        if item.status == "ok" and item.reason:
            console.say(f"note: {item.file.slide_id}: {item.reason}")
    if out is not None:
        write_slides_csv(found, out)
        console.say(f"wrote {out}")
    console.say(f"{len(found)} slides: {len(found) - len(bad)} ready, {len(bad)} not")
    return 3 if bad else 0


def unresolved_lines(found: Sequence[Surveyed]) -> list[str]:
    """Return one line per problem: status, the slides that share it, and what to do."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in found:
        if item.status != "ok":
            groups.setdefault((item.status, item.reason), []).append(item.file.slide_id)
    return [
        f"{status}: {ids[0]}: {reason}"
        if len(ids) == 1
        else f"{status}: {len(ids)} slides ({few(ids)}): {reason}"
        for (status, reason), ids in groups.items()
    ]


def _from_table(path: Path) -> list[SlideFile]:
    rows = read_slide_table(path)
    return [
        SlideFile(row.slide_id, row.path or path.parent / row.slide_id, row.mpp) for row in rows
    ]


def _printable(text: str) -> str:
    """Return `text` for tables and logs: line breaks, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _mpp_text(mpp: tuple[float, float]) -> str:
    x, y = (f"{value:.6g}" for value in mpp)
    return x if x == y else f"{x} x {y}"
