"""The contact sheet: every slide of a cohort on offline pages, the odd ones first."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsi.files import publish, sha256_bytes
from wsi.report.pictures import small_data_uri
from wsi.report.templates import script, source_hash, template
from wsi.slides.histogram import grouped, range_text

State = Literal["quarantined", "empty", "waiting", "done"]

PER_PAGE = 500
UNUSUAL = 3.5
"""Robust z from which a value is called unusual (Iglewicz & Hoaglin 1993)."""

_LEAST = 8  # slides that are done, below which nothing is called unusual

_MARK = "wsi contact sheet"  # by which a page of ours is known
_ORDER: tuple[State, ...] = ("quarantined", "empty", "waiting")
_MOST_WORDS = 400  # characters of a message shown on a card


@dataclass(frozen=True)
class SlideCard:
    """What the sheet says of one slide; None where it is not known.

    Attributes:
        state: `done`, `empty` (no tissue, no tiles), `quarantined`, or `waiting` (not done yet).
        reason: the word of a quarantined slide, such as `no-mpp`; `message` is for people.
        picture: JPEG of its overlay, and `link` leads there from the page's folder.
        considered: tiles of the whole grid, of which `tiles` are kept.
        why_left_out: tiles that are not among them by reason: `1 bad`, `5 dropped (5 blur)`.
        lesions: what became of those annotated: `2 of 3 covered, missed: corner`.
        mpp: um per level-0 pixel (x, y).
        size0: level-0 pixels (w, h); None where the file cannot be opened.
        flags: what a user should know: `pen`, `blur`, `assumed mpp`, ...
    """

    slide_id: str
    state: State
    reason: str = ""
    message: str = ""
    picture: Path | None = None
    link: str = ""
    tiles: int | None = None
    considered: int | None = None
    left_out: int = 0
    why_left_out: str = ""
    lesions: str = ""
    tissue_mm2: float | None = None
    tissue_share: float | None = None
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    vendor: str = ""
    reader: str = ""
    site: str = ""
    size0: tuple[int, int] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A card at its place in the outlier order, with the measures that are unusual in the cohort.

    Attributes:
        unusual: name of the measure and its robust z, largest first; only those beyond `UNUSUAL`,
            and in a cohort large enough to say so.
    """

    card: SlideCard
    unusual: tuple[tuple[str, float], ...] = ()


_Measure = Callable[[SlideCard], float | None]
_MEASURES: dict[str, _Measure] = {
    # Counts and scales vary by factors, so they are compared as logarithms.
    "tile count": lambda card: None if card.tiles is None else math.log1p(card.tiles),
    "tissue share": lambda card: card.tissue_share,
    "mpp": lambda card: None if card.mpp is None else math.log(math.prod(card.mpp)) / 2,
}


def robust_z(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return (value - median) / spread of each value; 0 where it is None or nothing varies.

    The spread is 1.4826 times the median absolute deviation, or 1.2533 times the mean one where
    most values are equal: both estimate the standard deviation of normal values.
    """
    numbers = np.asarray([math.nan if v is None else v for v in values], np.float64)
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        return np.zeros(len(numbers))
    far = np.abs(known - np.median(known))
    spread = 1.4826 * np.median(far) or 1.2533 * np.mean(far)
    if spread < 1e-12:
        return np.zeros(len(numbers))
    return np.nan_to_num((numbers - np.median(known)) / spread)


def outlier_order(cards: Sequence[SlideCard]) -> list[Placed]:
    """Return the cards, those first that someone should look at.

    Quarantined slides, then empty ones, those not done yet, those with a flag, and the rest; among
    equals the one whose tile count, tissue share or mpp lies furthest from the cohort's median
    (by robust z over the slides that are done), then by id.
    """
    done = [card if card.state == "done" else None for card in cards]
    z = {
        name: np.abs(robust_z([measure(card) if card else None for card in done]))
        for name, measure in _MEASURES.items()
    }
    furthest = np.max(list(z.values()), axis=0)

    def key(row: int) -> tuple[Any, ...]:
        card = cards[row]
        rank = _ORDER.index(card.state) if card.state in _ORDER else 3 + (not card.flags)
        return rank, -round(float(furthest[row]), 9), natural(card.slide_id)

    bound = UNUSUAL if sum(card is not None for card in done) >= _LEAST else math.inf
    placed = []
    for row in sorted(range(len(cards)), key=key):
        beyond = [(name, float(far[row])) for name, far in z.items() if far[row] > bound]
        placed.append(Placed(cards[row], tuple(sorted(beyond, key=lambda item: -item[1]))))
    return placed


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which `slide2` comes before `slide10`."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple((int(part), "") if k % 2 else (0, part) for k, part in enumerate(parts))


def mpp_bins(cards: Sequence[SlideCard]) -> dict[str, list[tuple[str, int]]]:
    """Return per site the resolutions found: the range of values within 2 %, and how many."""
    by_site: dict[str, list[float]] = {}
    for card in cards:
        if card.mpp is not None:
            by_site.setdefault(card.site, []).append(math.sqrt(math.prod(card.mpp)))
    return {
        site: [
            (range_text(group[0], group[-1]), len(group))
            for group in grouped(sorted(values), float)
        ]
        for site, values in sorted(by_site.items())
    }


def write_contact_sheet(
    folder: Path,
    cards: Sequence[SlideCard],
    settings: Mapping[str, str] | None = None,
    name: str = "report",
    per_page: int = PER_PAGE,
) -> list[Path]:
    """Write `name`.html, `name`-2.html, ... into `folder` and return their paths.

    A page is complete in itself: pictures are inside, at most 40 kB per slide, and nothing is asked
    for over a network. Outliers come first over all pages; pages that a larger cohort left behind
    are removed. One page's pictures at most are held at a time, one after the other.

    Args:
        settings: label and value of what the run was asked for.

    Raises:
        ResourceError: the disk is full.
    """
    placed = outlier_order(cards)
    pages = max(1, math.ceil(len(placed) / per_page))
    paths = [folder / f"{name}{f'-{k + 1}' if k else ''}.html" for k in range(pages)]
    head = _head(placed, settings or {})
    for k, path in enumerate(paths):
        shown = placed[k * per_page : (k + 1) * per_page]
        contents = _contents(head, shown, paths)
        if _is_page(path, contents):
            continue  # pictures of thousands of slides are not put into it once more
        text = template("contact_sheet.html.j2").generate(
            **head,
            mark=_MARK,
            contents=contents,
            script=script("contact_sheet.js"),
            page=k,
            pages=[other.name for other in paths],
            n_shown=len(shown),
            flags_shown=_counts(item for p in shown for item in _chips(p)),
            cards=_views(shown, k * per_page),
        )
        with publish(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(text)
    _remove_stale(folder, name, pages)
    return paths


def is_contact_sheet(path: Path) -> bool:
    """Return whether a file is a page of a contact sheet."""
    return _is_page(path, _MARK)


def _is_page(path: Path, word: str) -> bool:
    """Return whether the head of a page has `word` as the content of a tag."""
    try:
        with path.open("rb") as file:
            return f'content="{word}"'.encode() in file.read(2000)
    except FileNotFoundError:
        return False


def _contents(head: Mapping[str, Any], shown: Sequence[Placed], pages: Sequence[Path]) -> str:
    """Return a hash of all that a page shows, pictures by their size and time of change."""
    files = [_stamp(item.card.picture) for item in shown]
    made_by = source_hash("contact_sheet.html.j2", "contact_sheet.js")
    return sha256_bytes(repr((made_by, head, pages, shown, files)).encode())


def _stamp(picture: Path | None) -> tuple[int, int] | None:
    try:
        stat = picture.stat() if picture else None
    except FileNotFoundError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if stat else None


def _remove_stale(folder: Path, name: str, pages: int) -> None:
    for path in folder.glob(f"{name}-*.html"):
        number = path.stem.removeprefix(f"{name}-")
        if number.isdecimal() and int(number) > pages and is_contact_sheet(path):
            path.unlink()


def _head(placed: Sequence[Placed], settings: Mapping[str, str]) -> dict[str, Any]:
    """Return what every page says of the whole cohort."""
    cards = [item.card for item in placed]
    bins = mpp_bins(cards)
    return {
        "n": len(cards),
        "states": _counts(card.state for card in cards),
        "reasons": _counts(card.reason for card in cards if card.reason),
        "tiles": sum(card.tiles or 0 for card in cards),
        "tissue_mm2": sum(card.tissue_mm2 or 0.0 for card in cards),
        "bins": bins,
        "most": max((n for found in bins.values() for _, n in found), default=1),
        "no_mpp": sum(card.mpp is None and card.size0 is not None for card in cards),
        "settings": settings,
    }


def _counts(words: Iterator[str]) -> list[tuple[str, int]]:
    return sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))


def _chips(placed: Placed) -> tuple[str, ...]:
    """Return all that marks a card: its flags, and what is unusual about it."""
    return (*placed.card.flags, *(f"unusual {name}" for name, _ in placed.unusual))


def _views(placed: Sequence[Placed], first: int) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each card, its picture read only then."""
    for place, item in enumerate(placed, first):
        card = item.card
        uri = small_data_uri(card.picture) if card.picture else None
        message = card.message
        if len(message) > _MOST_WORDS:
            message = f"{message[: _MOST_WORDS - 1]}…"
        yield {
            "card": card,
            "place": place,
            "uri": uri,
            "link": quote(card.link),
            "message": message,
            "mpp": None if card.mpp is None else math.sqrt(math.prod(card.mpp)),
            "mpp_text": _mpp_text(card.mpp),
            "unusual": item.unusual,
            "chips": _chips(item),
            "alt": _alt(card),
        }


def _mpp_text(mpp: tuple[float, float] | None) -> str:
    if mpp is None:
        return "unknown"
    x, y = (f"{value:.4g}" for value in mpp)
    return x if x == y else f"{x} × {y}"


def _alt(card: SlideCard) -> str:
    words = [card.slide_id, "tissue outlined"]
    if card.tiles:
        words.append(f"{card.tiles} kept tiles marked")
    return ", ".join(words)
