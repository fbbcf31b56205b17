"""Tiles of imported bags embedded again: is the encoder the one that was declared?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config import load_config
from pipelines.console import Console
from wsi.bags import Bag, BagInfo, BagStore, Provenance
from wsi.bags.convert import copy_bag
from wsi.bags.foreign import DECLARED, VERIFIED, ForeignStore, slide_of
from wsi.bags.sidecar import write_sidecar
from wsi.encoders import Encoder, load_encoder
from wsi.errors import ConfigError, RegionError, SlideError
from wsi.extract import Recipe, make_recipe
from wsi.findings import Finding, few
from wsi.slides import Slide, SlideInfo, open_slide
from wsi.specs import Config
from wsi.tissue import recipe_of

ENOUGH = 0.999
"""Cosine from which features count as the same encoder's at the same geometry."""

TILES = 32
_MPP0 = 1.0  # tiles are known in level-0 pixels, so any resolution of the slide will do
_TELLING = 0.95  # cosine from which a cause is named with a "perhaps"


@dataclass(frozen=True)
class Compared:
    """One slide's tiles against its bag: mean and lowest cosine, and what would explain less."""

    slide_id: str
    tiles: int
    cosine: float
    lowest: float
    cause: str = ""


def recompute(
    store: BagStore,
    slides: Mapping[str, SlideInfo],
    n: int,
    settings: Sequence[str],
    console: Console,
    *,
    device: str = "cpu",
    dry_run: bool = False,
) -> list[Finding]:
    """Return what embedding up to 32 tiles of up to `n` slides again shows.

    Where all agree, every bag of the declared encoder is restated as made by the encoder that was
    found, under the recipe of `settings`: bags of our own may then stand beside them.

    Raises:
        ConfigError: there is no declared bag, none of the slides is at hand, or the recipe has no
            resolution.
        EncoderError: the encoder cannot be loaded.
    """
    infos = [i for i in store.infos() if i.provenance.encoder.get("state") == DECLARED]
    todo = _spread([i for i in infos if i.status == "done" and slide_of(slides, i.slide_id)], n)
    if not todo:
        raise ConfigError(
            f"{store.root}: no bag of a declared encoder has its slide here — check --slides"
        )
    config = _config(todo[0], settings)
    encoder = load_encoder(config.encoders[0], device, config.compute)
    compared: list[Compared] = []
    findings: list[Finding] = []
    with console.progress("embedding again", len(todo)) as track:
        for info in todo:
            slide = slide_of(slides, info.slide_id)
            try:
                compared.append(_compare(store, info, slide, encoder))  # pyright: ignore[reportArgumentType]
            except SlideError as error:
                findings.append(Finding("warning", error.reason, str(error), (info.slide_id,)))
            track.advance(1, info.slide_id)
    findings += _verdict(compared, encoder)
    if not dry_run and compared and all(each.cosine >= ENOUGH for each in compared):
        findings.append(_verified(store, infos, make_recipe(config, encoder), compared, console))
    return findings


def _spread(infos: list[BagInfo], n: int) -> list[BagInfo]:
    picked = np.unique(np.linspace(0, len(infos) - 1, min(n, len(infos))).round().astype(int))
    return [infos[k] for k in picked] if infos else []


def _config(info: BagInfo, settings: Sequence[str]) -> Config:
    """Return the settings that bags of our own would have been made with."""
    made = info.provenance
    tiling = made.tiling["settings"]
    known = {
        "encoder": made.encoder["name"],
        "tiling.mpp": tiling.get("mpp"),
        "tiling.tile_px": tiling.get("tile_px"),
        "tiling.stride": tiling.get("stride_um"),
        "precision": made.precision,
    }
    given = {word.partition("=")[0] for word in settings}
    words = [f"{key}={value}" for key, value in known.items() if key not in given and value]
    if not tiling.get("mpp") and "tiling.mpp" not in given:
        raise ConfigError(
            f"{info.slide_id}: its archive does not say at what resolution it was tiled — give "
            "tiling.mpp=<um per tile pixel>"
        )
    return load_config([*settings, *words])


# -- one slide -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tiles:
    """Reads the tiles of a bag as they were, or as a mistake would have had them."""

    slide: Slide
    xy0: NDArray[np.int32]
    size0: float
    tile_px: int

    def read(self) -> NDArray[np.uint8]:
        corners = map(tuple, self.xy0.tolist())
        mpp = self.size0 * _MPP0 / self.tile_px
        found = list(self.slide.read_tiles(corners, self.tile_px, mpp))
        bad = [tile for tile in found if isinstance(tile, RegionError)]
        if bad:
            raise bad[0]
        blank = np.zeros((self.tile_px, self.tile_px, 3), np.uint8)
        return np.stack([blank if tile is None else np.asarray(tile) for tile in found])


def _compare(store: BagStore, info: BagInfo, slide: SlideInfo, encoder: Encoder) -> Compared:
    rows = np.unique(np.linspace(0, info.n - 1, min(TILES, info.n)).round().astype(int))
    bag = store.read(info.slide_id, rows)
    made = info.provenance
    size0 = (made.tiling.get("resolved") or {}).get("size0")
    tile_px = made.tiling["settings"].get("tile_px")
    if size0 is None or tile_px is None:
        raise ConfigError(
            f"{info.slide_id}: nothing says how large its tiles are on the slide — import it "
            "again with --mpp or --slides"
        )
    with open_slide(slide.path, slide.slide_id, mpp=_MPP0) as opened:
        tiles = _Tiles(opened, bag.xy0, float(size0[0]), int(tile_px))
        return _against(bag, tiles, encoder)


def _against(bag: Bag, tiles: _Tiles, encoder: Encoder) -> Compared:
    pixels = tiles.read()
    features = _features(encoder, pixels)
    n, given = len(bag), bag.features.astype(np.float64)
    if features.shape != given.shape:
        widths = (
            f"{given.shape[1]} features per tile, {encoder.info.name} gives {features.shape[1]}"
        )
        return Compared(bag.slide_id, n, 0.0, 0.0, f"another encoder or pooling: {widths}")
    cosines = _cosine(features, given)
    mean, low = float(cosines.mean()), float(cosines.min())
    cause = "" if mean >= ENOUGH else _likely_cause(given, features, tiles, pixels, encoder, mean)
    return Compared(bag.slide_id, n, mean, low, cause)


def _likely_cause(
    given: np.ndarray,
    features: np.ndarray,
    tiles: _Tiles,
    pixels: NDArray[np.uint8],
    encoder: Encoder,
    mean: float,
) -> str:
    """Return which common mistake explains the features best, each tried on the same tiles."""
    scores = {
        what: float(_cosine(_features(encoder, read()), given).mean())
        for what, read in _mistakes(tiles, pixels)
    }
    best = max(scores, key=scores.__getitem__)
    if scores[best] >= ENOUGH:
        return best
    between = _unit(features) @ _unit(given).T
    if min(between.max(axis=0).mean(), between.max(axis=1).mean()) >= ENOUGH:
        return "rows and coordinates are in different orders"
    if scores[best] > max(mean, _TELLING):
        return f"perhaps {best} (cosine {scores[best]:.3f} then), and another difference"
    return "another encoder, other weights, or another transform before it"


def _mistakes(
    tiles: _Tiles, pixels: NDArray[np.uint8]
) -> Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]:
    half = round(tiles.size0 / 2)
    x, y, *_ = tiles.slide.info.bounds0
    yield "colours in the order blue, green, red", lambda: pixels[..., ::-1].copy()
    yield "x and y exchanged", replace(tiles, xy0=tiles.xy0[:, ::-1].copy()).read
    yield "tiles twice as large on the slide", replace(tiles, size0=tiles.size0 * 2).read
    yield "tiles half as large on the slide", replace(tiles, size0=tiles.size0 / 2).read
    yield "coordinates of centres, not corners", replace(tiles, xy0=tiles.xy0 - half).read
    if (x, y) != (0, 0):
        shift = np.array([x, y], np.int32)
        yield "coordinates counted from the bounds", replace(tiles, xy0=tiles.xy0 + shift).read


def _features(encoder: Encoder, pixels: NDArray[np.uint8]) -> np.ndarray:
    return encoder.embed(torch.from_numpy(pixels)).cpu().numpy().astype(np.float64)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (_unit(a) * _unit(b)).sum(axis=1)


# -- all slides ----------------------------------------------------------------------------------


def _verdict(compared: Sequence[Compared], encoder: Encoder) -> list[Finding]:
    findings = [
        Finding(
            "error",
            "recomputed-differs",
            f"{each.slide_id}: {each.tiles} tiles embedded again by {encoder.info.name} agree to a "
            f"cosine of {each.cosine:.3f}, {ENOUGH} is needed — likely cause: {each.cause}",
            (each.slide_id,),
        )
        for each in compared
        if each.cosine < ENOUGH
    ]
    if compared and not findings:
        tiles, low = sum(each.tiles for each in compared), min(each.lowest for each in compared)
        ids = tuple(each.slide_id for each in compared)
        message = f"{tiles} tiles of {few(ids)} embedded again: cosine {low:.5f} or more"
        findings.append(Finding("info", "recomputed", message, ids))
    return findings


def _verified(
    store: BagStore,
    infos: Sequence[BagInfo],
    recipe: Recipe,
    compared: Sequence[Compared],
    console: Console,
) -> Finding:
    with console.progress("restating", len(infos)) as track:
        for info in infos:
            _restate(store, info, _provenance(info, recipe, compared))
            track.advance(1, info.slide_id)
    return Finding(
        "info",
        "verified",
        f"{len(infos)} bags are verified as {recipe.encoder['name']}; own bags of the recipe "
        f"{recipe.name} may join",
        tuple(info.slide_id for info in infos),
    )


def _provenance(info: BagInfo, recipe: Recipe, compared: Sequence[Compared]) -> Provenance:
    """Return an imported bag's provenance under a recipe of ours; what was declared is kept."""
    made = info.provenance
    proof = {
        "slides": [each.slide_id for each in compared],
        "tiles": sum(each.tiles for each in compared),
        "lowest_cosine": round(min(each.lowest for each in compared), 6),
    }
    encoder = {"state": VERIFIED, "declared": made.encoder, "verified_by": proof}
    tiling = {"settings": asdict(recipe.tiling), "declared": made.tiling["settings"]}
    # As for a slide with tissue settings of its own: it belongs to the set, and says so.
    tissue = {"settings": recipe_of(recipe.tissue), "overrides": made.tissue["settings"]}
    return replace(
        made,
        tiling=made.tiling | tiling,
        encoder=recipe.encoder | encoder,
        tissue=made.tissue | tissue,
        quality={"settings": recipe.quality.model_dump(exclude_none=True)},
    )


def _restate(store: BagStore, info: BagInfo, made: Provenance) -> None:
    if isinstance(store, ForeignStore):
        stated = replace(info, provenance=made, key=made.key, recipe_key=made.recipe_key)
        write_sidecar(store.root, stated)
    else:
        copy_bag(store, store, info, provenance=made)
