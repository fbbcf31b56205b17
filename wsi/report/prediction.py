"""One page per predicted slide: what the models say together, how far apart, and from where."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi.files import publish_bytes
from wsi.report.templates import template

_TEMPLATE = "prediction.html.j2"


@dataclass(frozen=True)
class ClassRow:
    """What the models say of one class: mean, spread (None for one model), least and most."""

    name: str
    p: float
    sd: float | None
    least: float
    most: float


@dataclass(frozen=True)
class Figure:
    """A picture with its heading and caption.

    Attributes:
        picture: bytes of a JPEG or PNG file.
    """

    title: str
    caption: str
    alt: str
    picture: bytes

    @property
    def uri(self) -> str:
        """Return the picture as part of the page."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.picture).decode()}"


@dataclass(frozen=True)
class PredictedSlide:
    """What the page says.

    Attributes:
        key: hash of all that the page depends on.
        classes: in the order of the run.
        notes: what a reader should know, such as a site not seen in training.
        missing: why a figure is not there.
        facts: how it was made, in words.
    """

    slide_id: str
    key: str
    predicted: str
    n_models: int
    classes: Sequence[ClassRow]
    notes: Sequence[str]
    figures: Sequence[Figure]
    missing: Sequence[str]
    facts: Mapping[str, Any]


def write_prediction(path: Path, slide: PredictedSlide) -> None:
    """Write the page; it holds its pictures and loads nothing."""
    publish_bytes(path, template(_TEMPLATE).render(slide=slide).encode())


def is_current(path: Path, key: str) -> bool:
    """Return whether a page is there that was made from the same."""
    try:
        with path.open("rb") as handle:
            return f'name="wsi-key" content="{key}"'.encode() in handle.read(4096)
    except OSError:
        return False
