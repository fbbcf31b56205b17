"""What became of the tiles of a run, in the words the user sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.console import Tracker, counted
from wsi.bags import DROPPED, BagInfo
from wsi.errors import ConfigError
from wsi.findings import few


class TileCount:
    """Progress by tiles; a slide not looked at yet counts as the mean of those that were."""

    def __init__(self, track: Tracker, slides: int) -> None:
        self._track = track
        self._slides = slides
        self._seen = 0
        self._tiles = 0

    def located(self, tiles: int) -> None:
        """Note how many tiles one more slide has."""
        self._seen += 1
        self._tiles += tiles
        self._track.expect(round(self._tiles / self._seen * self._slides))

    def read(self, tiles: int) -> None:
        """Count tiles that are dealt with."""
        self._track.advance(tiles)


def fates(info: BagInfo, *, just_made: bool = False) -> dict[str, int]:
    """Return a slide's tiles by fate: `tiles` in its bag, `missing`, `bad`, `dropped-...`.

    Args:
        just_made: say also how many of its tiles were `reused` from the bag before.
    """
    told = ("missing", "bad", "reused") if just_made else ("missing", "bad")
    counts = {name: n for name, n in info.counts.items() if name in told}
    counts |= {name: n for name, n in info.counts.items() if name.startswith(DROPPED)}
    return {"tiles": info.n} | counts


def tiles_line(slides: int, counts: Mapping[str, int]) -> str:
    """Return the fates of all tiles: `3 slides: 1,204 tiles, 1 bad, 40 dropped (31 blur, 9 pen)`.

    Nothing is said of fates that no tile had.
    """
    reused = f" ({counts['reused']:,} reused)" if counts.get("reused") else ""
    parts = [f"{counted(counts.get('tiles', 0), 'tile')}{reused}", *left_out_words(counts)]
    return f"{counted(slides, 'slide')}: {', '.join(parts)}"


def left_out_words(counts: Mapping[str, int]) -> list[str]:
    """Return `1 bad` and `40 dropped (31 blur, 9 pen)`, without the fates that no tile had."""
    plain = [f"{counts[name]:,} {name}" for name in ("missing", "bad") if counts.get(name)]
    return plain + dropped_words(_dropped(counts))


def dropped_words(reasons: Mapping[str, int], word: str = "dropped") -> list[str]:
    """Return `40 dropped (31 blur, 9 pen)`, in a list that is empty where nothing was."""
    reasons = {name: n for name, n in reasons.items() if n}
    listed = ", ".join(f"{n:,} {name}" for name, n in reasons.items())
    return [f"{sum(reasons.values()):,} {word} ({listed})"] if reasons else []


def tiles_result(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the same for machines."""
    plain = {name: counts.get(name, 0) for name in ("tiles", "missing", "bad")}
    reused = {"reused": counts["reused"]} if counts.get("reused") else {}
    return plain | reused | {"dropped": _dropped(counts)}


def _dropped(counts: Mapping[str, int]) -> dict[str, int]:
    return {k.removeprefix(DROPPED): n for k, n in counts.items() if k.startswith(DROPPED)}


def bad_line(info: BagInfo) -> str:
    """Return which tiles of a slide were left out as they could not be decoded; may be empty."""
    if not info.bad_tiles:
        return ""
    n, planned = len(info.bad_tiles), info.counts["planned"]
    corners = few(f"({tile['xy0'][0]}, {tile['xy0'][1]})" for tile in info.bad_tiles)
    verb = "was" if n == 1 else "were"
    return (
        f"{info.slide_id}: {n} of {planned} tiles cannot be decoded and {verb} left out, "
        f"at level-0 {corners}"
    )


def refuse_bad(infos: Iterable[BagInfo], allowed: int) -> None:
    """Stop where bags of an earlier run left out more bad tiles than are allowed now.

    Raises:
        ConfigError: names them and both ways out.
    """
    worse = {info.slide_id: len(info.bad_tiles) for info in infos if len(info.bad_tiles) > allowed}
    if worse:
        named = few(f"{slide_id} {n}" for slide_id, n in worse.items())
        raise ConfigError(
            f"{len(worse)} bags left out more tiles that cannot be decoded than "
            f"--max-bad-tiles {allowed} allows ({named}) — add --max-bad-tiles "
            f"{max(worse.values())} to keep these bags, or --redo to read the slides again"
        )
