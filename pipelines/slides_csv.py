"""`slides.csv`: what is known of every slide, kept so that unchanged files are not opened again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide

import wsi
from wsi.errors import ConfigError
from wsi.files import publish_bytes, sha256_json
from wsi.slides import FileStamp, SlideFile, SlideInfo
from wsi.slides.resolution import agree
from wsi.specs import SlidesSpec

Row = dict[str, str]

STABLE: tuple[str, ...] = (
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
"""Columns that every version has written."""

COLUMNS: tuple[str, ...] = (
    *STABLE,
    "mpp_x",
    "mpp_y",
    "downsamples",
    "bounds",
    "icc",
    "associated",
    "reader",
    "size_bytes",
    "mtime_ns",
    "fingerprint",
    "site",
    "level_sizes",
    "background",
    "reader_note",
    "resolved_with",
)
_NAMING = ("slide_id", "path", "site", "mpp", "resolved_with")  # may change without a new look
_NOTES = "; "
_KNOWN = ("ok", "no-mpp", "implausible-mpp")


@dataclass(frozen=True)
class Surveyed:
    """One slide as found: its facts, or why it cannot be used.

    Attributes:
        status: `ok`, or the word that quarantine.csv uses: `no-mpp`, `open-failed`, ...
        reason: one line for people, with what to do next.
        stamp: of the file when it was looked at; None where it could not be seen.
        settings: what the answer depends on beside the file, see `settings_key`.
    """

    file: SlideFile
    info: SlideInfo | None
    status: str
    reason: str
    stamp: FileStamp | None = None
    settings: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the columns of slides.csv as values, None where nothing is known."""
        found: dict[str, Any] = dict.fromkeys(COLUMNS)
        found |= {
            "slide_id": self.file.slide_id,
            "path": str(self.file.path.absolute()),
            "site": self.file.site or None,
            "status": self.status,
            "reason": self.reason or None,
        }
        if self.stamp is not None:
            found |= {"size_bytes": self.stamp.size_bytes, "mtime_ns": self.stamp.mtime_ns}
        if self.info is not None:
            found |= _facts_of(self.info)
        found["resolved_with"] = _seal(_row(found), self.settings)
        return found

    def row(self) -> Row:
        """Return the row of slides.csv."""
        return _row(self.facts())


def settings_key(file: SlideFile, spec: SlidesSpec) -> str:
    """Return what decides about a slide beside its file: table, settings, versions."""
    asked = spec.model_dump(mode="json", exclude={"no_mpp", "sha256"})
    versions = [wsi.__version__, openslide.__library_version__]
    return sha256_json([file.mpp, asked, versions])[:16]


def recalled(row: Row, file: SlideFile, stamp: FileStamp | None, settings: str) -> Surveyed | None:
    """Return what a row says of a slide, or None when the slide must be looked at again.

    That is so when its file or the settings are others, when it could not be opened, and when
    someone has changed the facts in the row.
    """
    if stamp is None or row.get("status") not in _KNOWN:
        return None
    try:
        same = FileStamp(int(row["size_bytes"]), int(row["mtime_ns"])) == stamp
        if not same or row["resolved_with"] != _seal(row, settings):
            return None
        info = _info(row, file)
    except (KeyError, ValueError):
        return None
    return Surveyed(file, info, row["status"], row["reason"], stamp, settings)


def given_mpp(row: Row) -> float | None:
    """Return the um per pixel that a row gives for its slide, not what was found on the slide.

    That is a cell filled or changed by hand, or one that came from an earlier table.
    """
    cell = float(row["mpp"]) if row.get("mpp") else None
    if cell is None or row.get("mpp_source") == "table":
        return cell
    found = _mpp_of(row)
    return None if found is not None and cell == _one_mpp(found) else cell


def changed_by_hand(row: Row) -> bool:
    """Return whether the mpp of a row is neither what was found nor what a table gave."""
    if not row.get("mpp") or "resolved_with" not in row:
        return False
    found = _mpp_of(row)
    return found is None or float(row["mpp"]) != _one_mpp(found)


def read_slides_csv(path: Path) -> list[Row]:
    """Return the rows that an earlier survey wrote; none when there is no such file.

    Raises:
        ConfigError: the file is something else, or damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = set(STABLE) - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            return [_checked(row, reader.line_num) for row in reader]
    except (ValueError, csv.Error) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error
        raise ConfigError(
            f"{path} is no table that a scan wrote ({why}) — move it away, or give another --out"
        ) from None


def write_slides_csv(found: Iterable[Surveyed], path: Path) -> int:
    """Write the slides to `path`, in order of id, and return how many other rows were kept.

    Rows of slides that are not among `found` stay, and so do columns that are not ours.
    """
    # Read now and not before the survey: another process may have written meanwhile.
    rows = {row["slide_id"]: row for row in read_slides_csv(path)}
    new = {item.file.slide_id: item.row() for item in found}
    kept = len(rows.keys() - new.keys())
    rows |= {slide_id: rows.get(slide_id, {}) | row for slide_id, row in new.items()}
    columns = dict.fromkeys(COLUMNS) | dict.fromkeys(c for row in rows.values() for c in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[slide_id] for slide_id in sorted(rows))
    publish_bytes(path, text.getvalue().encode())
    return kept


def _checked(row: dict[str | None, Any], line: int) -> Row:
    if None in row or None in row.values() or not row["slide_id"]:
        raise ValueError(f"line {line} has another number of cells than the header, or no slide_id")
    if row["mpp"]:
        float(row["mpp"])
    return row  # pyright: ignore[reportReturnType]


def _facts_of(info: SlideInfo) -> dict[str, Any]:
    return {
        "vendor": info.vendor,
        "width": info.size0[0],
        "height": info.size0[1],
        "levels": len(info.level_sizes),
        "mpp": None if info.mpp is None else _one_mpp(info.mpp),
        "mpp_source": info.mpp_source,
        "magnification": info.magnification,
        "mpp_x": info.mpp[0] if info.mpp else None,
        "mpp_y": info.mpp[1] if info.mpp else None,
        "downsamples": info.downsamples,
        "bounds": info.bounds0,
        "icc": info.icc,
        "associated": info.associated,
        "reader": info.reader,
        "fingerprint": info.fingerprint,
        "level_sizes": info.level_sizes,
        "background": info.background,
        "reader_note": info.reader_note or None,
    }


def _info(row: Row, file: SlideFile) -> SlideInfo:
    sizes = _pairs(row["level_sizes"], int)
    return SlideInfo(
        slide_id=file.slide_id,
        path=file.path,
        vendor=row["vendor"],
        size0=(int(row["width"]), int(row["height"])),
        mpp=_mpp_of(row),
        mpp_source=row["mpp_source"],
        mpp_state=row["status"],
        level_sizes=sizes,
        downsamples=_pairs(row["downsamples"], float),
        bounds0=tuple(map(int, row["bounds"].split(";"))),  # pyright: ignore[reportArgumentType]
        background=tuple(map(int, row["background"].split(";"))),  # pyright: ignore[reportArgumentType]
        fingerprint=row["fingerprint"],
        magnification=float(row["magnification"]) if row["magnification"] else None,
        notes=tuple(row["reason"].split(_NOTES)) if row["reason"] else (),
        reader=row["reader"],
        reader_note=row["reader_note"],
        icc=row["icc"] or None,
        associated=tuple(row["associated"].split(";")) if row["associated"] else (),
    )


def _mpp_of(row: Row) -> tuple[float, float] | None:
    try:
        return float(row["mpp_x"]), float(row["mpp_y"])
    except (KeyError, ValueError):
        return None


def _one_mpp(mpp: tuple[float, float]) -> float | None:
    """Return one figure for both axes, or None when they are not about the same."""
    return float(f"{(mpp[0] + mpp[1]) / 2:.6g}") if agree(*mpp) else None


def _seal(row: Mapping[str, str], settings: str) -> str:
    """Return a hash of the settings and of the facts they led to."""
    facts = [row[column] for column in COLUMNS if column not in _NAMING]
    return sha256_json([settings, facts])[:16]


def _row(facts: Mapping[str, Any]) -> Row:
    return {column: _text(column, value) for column, value in facts.items()}


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in ("downsamples", "level_sizes"):
        return ";".join("x".join(map(_number, pair)) for pair in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ";".join(map(_number, value))
    return _number(value)


def _number(value: Any) -> str:
    """Return text that reads back as the same number; 20.0 is written 20."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _pairs(text: str, kind: type) -> Any:
    return tuple(tuple(kind(value) for value in pair.split("x")) for pair in text.split(";"))
