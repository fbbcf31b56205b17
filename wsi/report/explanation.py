"""The page of `wsi explain`: every slide with its map, and the top tiles of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wsi.files import publish_bytes
from wsi.report.templates import template


@dataclass(frozen=True)
class ExplainedSlide:
    """What the page says of one slide.

    Attributes:
        picture: the overlay, and `files` all that was written, as paths from the page's folder.
        label: its class where known; None otherwise.
        rival: what the target was held against, in words.
        gap: nats by which tiles miss what they sum to.
        auroc: of the shown map for tiles in annotated lesions, where there are any.
    """

    slide_id: str
    picture: str
    predicted: str
    probability: float
    label: str | None
    models: str
    target: str
    rival: str
    exact: bool
    gap: float
    auroc: float | None
    tiles: int
    files: tuple[str, ...]

    @property
    def image(self) -> str:
        """Return the address of the overlay; names of files are percent-encoded already."""
        return quote(self.picture)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Return what else was written: a word and its address."""
        others = [name for name in self.files if name != self.picture]
        return [(_word(name), quote(name)) for name in others]


_SUFFIXES = {".csv": "tiles (CSV)", ".geojson": "QuPath (GeoJSON)", ".zip": "QuPath (zip)"}


def _word(name: str) -> str:
    path = Path(name)
    return _SUFFIXES.get(path.suffix, f"{path.parent.as_posix()} map")


def write_explanation(
    path: Path,
    slides: Sequence[ExplainedSlide],
    galleries: Sequence[tuple[str, Path]],
    summary: Mapping[str, Any],
) -> None:
    """Write the page; its pictures are files beside it, so the folder moves as a whole.

    Args:
        galleries: class and picture of its top tiles, below the page's folder.
        summary: as in summary.json.
    """
    text = template("explanation.html.j2").render(
        slides=slides,
        galleries=[(name, quote(p.relative_to(path.parent).as_posix())) for name, p in galleries],
        summary=summary,
        failed=dict(summary["failed"]),
    )
    publish_bytes(path, text.encode())
