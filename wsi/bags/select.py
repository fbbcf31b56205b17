"""Which bags may stand in one set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from wsi.bags.sidecar import BagInfo
from wsi.errors import BagMismatchError, BagMissingError

_ALWAYS_SHOWN = ("encoder", "mpp", "tile_px")
_SHOWN_DIGITS = 12


def check_uniform(infos: Iterable[BagInfo]) -> str:
    """Return the recipe key that all of `infos` share.

    Raises:
        BagMismatchError: they differ in tiling, tissue settings, encoder, precision or width; the
            message counts each kind and says in what they differ.
        BagMissingError: there are none.
    """
    kinds: dict[str, list[BagInfo]] = defaultdict(list)
    for info in infos:
        # An empty slide has no width, and goes with any.
        kinds[f"{info.recipe_key} {info.dim or ''}"].append(info)
    if not kinds:
        raise BagMissingError("no bags — run `wsi preprocess` first")
    done = {key: members for key, members in kinds.items() if members[0].status == "done"}
    if len({key.split()[0] for key in kinds}) > 1 or len(done) > 1:
        raise BagMismatchError(_difference(list(kinds.values())))
    return next(iter(kinds)).split()[0]


def _difference(kinds: list[list[BagInfo]]) -> str:
    kinds = sorted(kinds, key=len, reverse=True)
    settings = [_settings(members[0]) for members in kinds]
    names = list(dict.fromkeys(name for each in settings for name in each))
    shown = [n for n in names if n in _ALWAYS_SHOWN or len({str(s.get(n)) for s in settings}) > 1]
    counted = ", ".join(
        f"{len(members)} bags " + " ".join(f"{name}={each.get(name)}" for name in shown)
        for members, each in zip(kinds, settings, strict=True)
    )
    return f"bags of different recipes: {counted} — use one recipe folder, or redo the fewer"


def _settings(info: BagInfo) -> dict[str, Any]:
    made = info.provenance
    fingerprint = str(made.encoder["fingerprint"])[:_SHOWN_DIGITS]
    flat = {"encoder": made.encoder.get("name", fingerprint), "encoder.fingerprint": fingerprint}
    flat |= made.tiling["settings"]
    flat |= {f"tissue.{name}": value for name, value in made.tissue["settings"].items()}
    for part in ("quality", "pixels"):
        flat |= {f"{part}.{name}": value for name, value in made.recipe.get(part, {}).items()}
    return flat | {"precision": made.precision, "dim": info.dim}
