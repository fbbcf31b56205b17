"""`wsi scan`: what each slide is, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config import load_config, paths_and_settings
from pipelines.console import Console, counted
from pipelines.slides_csv import STABLE, Surveyed
from pipelines.survey import (
    Sources,
    listed_slides,
    note_lines,
    survey,
    tell_passed_over,
    unresolved_lines,
)
from pipelines.workers import readers
from wsi.errors import ConfigError
from wsi.findings import few
from wsi.slides.histogram import MppBin, mpp_bins
from wsi.specs import LimitsSpec, SlidesSpec

_SHOWN = tuple(c for c in (*STABLE, "reader", "icc") if c not in ("path", "reason"))


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings.

    Attributes:
        out: where slides.csv is read from and written to, or None.
    """

    paths: tuple[Path, ...]
    out: Path | None = None
    jobs: int = 1
    settle: float = 0.0


def run(options: Options, spec: SlidesSpec, console: Console) -> int:
    """Print (and write) what every slide is; 3 when one is unreadable or unresolved."""
    sources = listed_slides(options.paths)
    if not sources.files:
        tell_passed_over(sources, console)
        console.warn(f"no slides below {', '.join(map(str, options.paths))} — check the path")
        return 3
    found = survey(
        sources,
        spec,
        console,
        readers(options.jobs, LimitsSpec()),
        settle=options.settle,
        slides_csv=options.out,
    )
    bins = mpp_bins((item.file.site, item.info) for item in found if item.info is not None)
    if not console.quiet:
        console.table(_SHOWN, (_shown(item) for item in found), "slides")
    console.result(_document(found, bins, sources))
    for line in unresolved_lines(found):
        console.warn(line)
    for line in (*note_lines(found), *histogram_lines(bins)):
        console.say(line)
    tell_passed_over(sources, console)
    if options.out is not None:
        console.say(f"wrote {options.out}")
    bad = sum(item.status != "ok" for item in found)
    console.say(f"{counted(len(found), 'slide')}: {len(found) - bad} ready, {bad} not")
    return 3 if bad or sources.closed else 0


def places_and_settings(words: Sequence[str]) -> tuple[tuple[Path, ...], SlidesSpec]:
    """Return the paths among the words of a command line, and its settings of slides.

    Raises:
        ConfigError: no path, or a setting that has nothing to do with opening slides.
    """
    places, settings = paths_and_settings(words)
    idle = [word for word in settings if "=" in word and not word.startswith("slides.")]
    if idle:
        raise ConfigError(f"{idle[0]}: a scan takes only settings of slides.* — leave it out")
    if not places:
        raise ConfigError("nothing to scan — give folders or slide files: wsi scan DIR")
    return places, load_config(settings).slides


def slides_csv_at(out: Path) -> Path:
    """Return the table that `--out` means: the file itself, or slides.csv in a folder."""
    return out if out.suffix and not out.is_dir() else out / "slides.csv"


def histogram_lines(bins: Sequence[MppBin]) -> list[str]:
    """Return um per pixel by site as lines of a small table, and the slides that stand out."""
    if not bins:
        return []
    table = [("site", "um/px", "slides", "vendor", "source")]
    table += [
        (
            found.site or "-",
            found.text,
            str(len(found.slide_ids)),
            _counted(found.vendors),
            _counted(found.sources),
        )
        for found in bins
    ]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
    return [*(f"  {line}" for line in lines), *_outliers(bins)]


def _outliers(bins: Sequence[MppBin]) -> list[str]:
    lines = []
    for found in bins:
        if found.outlying:
            here = [b for b in bins if b.site == found.site and b.mpp is not None]
            counts = ", ".join(f"{b.text} x{len(b.slide_ids)}" for b in here)
            where = f"{found.site}: " if found.site else ""
            lines.append(f"outliers: {where}{counts}: {few(found.slide_ids)} ({found.text})")
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word} {n}" for word, n in counts.items())


def _shown(item: Surveyed) -> list[str]:
    row = item.row()
    if item.info and item.info.mpp and not row["mpp"]:
        row["mpp"] = " x ".join(f"{value:.6g}" for value in item.info.mpp)
    return [row[column] for column in _SHOWN]


def _document(
    found: Sequence[Surveyed], bins: Sequence[MppBin], sources: Sources
) -> dict[str, Any]:
    ready = sum(item.status == "ok" for item in found)
    return {
        "slides": [item.facts() for item in found],
        "mpp_by_site": [asdict(found) for found in bins],
        "ignored": dict(sources.ignored),
        "closed": [str(folder) for folder in sources.closed],
        "ready": ready,
        "not_ready": len(found) - ready,
    }
