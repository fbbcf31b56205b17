"""Recipes, and one slide from tissue to bag."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import torch

from wsi.bags import create_store
from wsi.encoders import encoder_info, load_encoder
from wsi.errors import BadTilesError, BagError, ConfigError, RegionError
from wsi.extract import embed, locate, make_recipe, settle_tiling
from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.specs import Component, Config, TilingSpec


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(Component(name="texture-v1"))


def config(**tiling: object) -> Config:
    return Config.model_validate({"tiling": {"mpp": 1.0, "tile_px": 64} | tiling})


def test_auto_is_what_the_encoder_was_made_for() -> None:
    info = encoder_info(Component(name="texture-v1"))
    settled = settle_tiling(TilingSpec(), info)
    assert (settled.mpp, settled.tile_px) == (info.mpp, info.tile_px)
    given = settle_tiling(TilingSpec(mpp=2.0, tile_px=64, stride=50), info)
    assert (given.mpp, given.tile_px, given.stride_um) == (2.0, 64, 50)


def test_a_recipe_is_named_after_encoder_resolution_and_tile(encoder) -> None:
    assert make_recipe(config(), encoder).name == "texture-v1_1um_64px"
    assert make_recipe(config(mpp=0.5, tile_px=256), encoder).name == "texture-v1_0.5um_256px"


def test_tiles_too_small_for_the_encoder_are_refused(encoder) -> None:
    with pytest.raises(ConfigError, match=r"tiling\.tile_px=16 is too small.*at least 32"):
        make_recipe(config(tile_px=16), encoder)


def test_every_setting_that_matters_changes_the_key(slide_folder: Path, encoder) -> None:
    with (
        open_slide(slide_folder / "a.svs") as slide,
        open_slide(slide_folder / "a.svs", mpp=0.6) as other,
    ):
        info, stretched = slide.info, other.info
    changes = [
        {},
        {"mpp": 2.0},
        {"tile_px": 128},
        {"stride": 32},
        {"min_tissue": 0.2},
        {"max_upsampling": 1.2},
    ]
    keys = [make_recipe(config(**c), encoder).provenance(info).key for c in changes]
    full = config().model_dump(mode="json")
    limits = ({"quality": {f"max_{name}": 0.5}} for name in ("blur", "pen", "fold"))
    coloured = (
        {"half_dct": True},
        {"srgb": True},
        {"stain": "macenko"},
        {"stain": "reinhard"},
        {"stain": {"name": "macenko", "alpha": 2}},
    )
    for pixels in coloured:
        recipe = make_recipe(Config.model_validate(full | {"pixels": pixels}), encoder)
        keys.append(recipe.provenance(info).key)
    for more in ({"precision": "float32"}, {"tissue": {"mpp": 4}}, *limits):
        recipe = make_recipe(Config.model_validate(full | more), encoder)
        keys.append(recipe.provenance(info).key)
    keys.append(make_recipe(config(), encoder).provenance(stretched).key)
    assert len(set(keys)) == len(keys)
    same = make_recipe(config(), encoder)
    assert same.provenance(info).key == keys[0]
    later = {"fit": {"epochs": 3}, "store": "zarr", "data": {"max_blur": 0.5}}
    unrelated = Config.model_validate(full | later)
    assert make_recipe(unrelated, encoder).provenance(info).key == keys[0]


def test_a_bag_names_what_decoded_it(slide_folder: Path, encoder, tmp_path: Path) -> None:
    recipe = make_recipe(config(), encoder)
    store = create_store(tmp_path, "h5")
    with open_slide(slide_folder / "a.svs") as slide:
        info = embed(slide, locate(slide, recipe.tissue, recipe.tiling), encoder, recipe, store)
    assert info.versions["openslide"] == openslide.__library_version__
    assert info.versions["simplejpeg"] == simplejpeg.__version__
    assert {"wsi", "python", "torch", "timm"} <= info.versions.keys()


def test_the_key_needs_no_tissue_search(slide_folder: Path, encoder) -> None:
    recipe = make_recipe(config(), encoder)
    with open_slide(slide_folder / "a.svs") as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        planned, made = recipe.provenance(slide.info), recipe.provenance(slide.info, located)
    assert (planned.key, planned.recipe_key) == (made.key, made.recipe_key)
    assert (made.slide["reader"], made.slide["reader_note"]) == ("tiff", "")


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_changes_nothing(
    slide_folder: Path, encoder, tmp_path: Path, batch: int
) -> None:
    recipe = make_recipe(config(), encoder)
    store = create_store(tmp_path, "h5")
    dealt = []
    with open_slide(slide_folder / "a.svs") as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        embed(slide, located, encoder, recipe, store, batch=batch, on_tiles=dealt.append)
        tiles = [slide.read_at(tuple(xy), (64, 64), 1.0) for xy in located.grid.xy0.tolist()]
    expected = encoder.embed(torch.from_numpy(np.stack(tiles))).numpy()
    bag = store.read("a")
    np.testing.assert_array_equal(bag.xy0, located.grid.xy0)
    np.testing.assert_allclose(bag.features, expected, rtol=2e-3, atol=2e-3)
    assert sum(dealt) == len(located.grid)
    assert max(dealt) <= batch


def test_a_feature_that_is_not_finite_stores_nothing(
    slide_folder: Path, encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(config(), encoder)
    store = create_store(tmp_path, "h5")
    monkeypatch.setattr(
        encoder, "embed", lambda tiles: torch.full((len(tiles), encoder.info.dim), torch.nan)
    )
    with open_slide(slide_folder / "a.svs") as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        with pytest.raises(BagError, match="a"):
            embed(slide, located, encoder, recipe, store)
    assert store.ids() == []


# -- scores and limits -------------------------------------------------------------------------

EDGE = 64


@pytest.fixture(scope="module")
def flawed(picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8 x 8 grid of tiles of 64 px at 1 um: row 2 is out of focus, row 5 painted over."""
    pixels = picture(size=(512, 512), radius=0.9)
    rows = slice(2 * EDGE, 3 * EDGE)
    pixels[rows] = cv2.GaussianBlur(pixels, (0, 0), 6)[rows]
    pixels[5 * EDGE : 6 * EDGE] = (20, 120, 80)
    path = tmp_path_factory.mktemp("flawed") / "flawed.tif"
    write_slide(path, [pixels], mpp=1.0, lossless=True)
    return path


def embedded(path: Path, encoder, root: Path, batch: int = 64, **quality: float):
    settings = {"tiling": {"mpp": 1.0, "tile_px": EDGE, "min_tissue": 0}, "quality": quality}
    recipe = make_recipe(Config.model_validate(settings), encoder)
    store = create_store(root, "h5")
    with open_slide(path) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        return embed(slide, located, encoder, recipe, store, batch=batch), store


def test_every_embedded_tile_has_scores(flawed: Path, encoder, tmp_path: Path) -> None:
    info, store = embedded(flawed, encoder, tmp_path)
    bag = store.read("flawed")
    assert info.counts == {"considered": 64, "planned": 64}
    assert bag.quality is not None
    row = bag.xy0[:, 1] // EDGE
    assert bag.quality["blur"][row == 2].min() > bag.quality["blur"][row == 0].max()
    assert (bag.quality["pen"] == (row == 5)).all()
    assert set(info.provenance.quality) == {"settings", "fold"}


@pytest.mark.parametrize("batch", [5, 64])
def test_tiles_above_a_limit_are_dropped_and_counted(
    flawed: Path, encoder, tmp_path: Path, batch: int
) -> None:
    whole, store = embedded(flawed, encoder, tmp_path / "all")
    every = store.read("flawed")
    info, store = embedded(flawed, encoder, tmp_path / "some", batch, max_pen=0.5)
    bag = store.read("flawed")
    assert info.counts == {"considered": 64, "planned": 64, "dropped-pen": 8}
    kept = every.xy0[:, 1] // EDGE != 5
    np.testing.assert_array_equal(bag.xy0, every.xy0[kept])
    np.testing.assert_array_equal(bag.tissue, every.tissue[kept])
    np.testing.assert_allclose(bag.features, every.features[kept], rtol=2e-3, atol=2e-3)
    assert every.quality is not None
    assert bag.quality is not None
    np.testing.assert_array_equal(bag.quality["blur"], every.quality["blur"][kept])
    assert info.recipe_key != whole.recipe_key


def test_a_slide_of_which_all_is_dropped_is_empty(flawed: Path, encoder, tmp_path: Path) -> None:
    info, store = embedded(flawed, encoder, tmp_path, max_blur=0.0)
    assert (info.status, info.reason, info.n) == ("empty", "all-dropped", 0)
    assert info.counts["dropped-blur"] == 64
    assert store.ids() == []


class Darker:
    """Steps that take every tile to half its intensity, as a colour profile might."""

    record: ClassVar[dict] = {}

    def to_srgb(self, tiles: np.ndarray) -> np.ndarray:
        return tiles // 2

    def normalise(self, tiles: np.ndarray) -> np.ndarray:
        return tiles


def test_folds_are_told_in_the_colours_of_the_tiles(flawed: Path, encoder, tmp_path: Path) -> None:
    settings = {"tiling": {"mpp": 1.0, "tile_px": EDGE, "min_tissue": 0.9}}
    recipe = make_recipe(Config.model_validate(settings), encoder)
    store = create_store(tmp_path, "h5")
    folds = []
    for steps in (None, Darker()):
        with open_slide(flawed) as slide:
            located = locate(slide, recipe.tissue, recipe.tiling)
            embed(slide, located, encoder, recipe, store, steps=steps)  # pyright: ignore
        quality = store.read("flawed").quality
        assert quality is not None
        folds.append(float(quality["fold"].max()))
    assert max(folds) < 0.1


# -- bad tiles ---------------------------------------------------------------------------------


class Spoilt:
    """A slide of which some tiles cannot be decoded and some hold no data."""

    def __init__(self, slide, bad: set[int], missing: set[int]) -> None:
        self.info, self._slide, self._bad, self._missing = slide.info, slide, bad, missing
        self.read_so_far = 0

    def read_tiles(self, xy0, tile_px, mpp):
        for row, tile in enumerate(self._slide.read_tiles(xy0, tile_px, mpp)):
            self.read_so_far += 1
            if row in self._bad:
                yield RegionError(f"{self.info.path.name}: no marker at row {row} — copy it again")
            else:
                yield None if row in self._missing else tile


def spoil(path: Path, encoder, root: Path, bad, missing=(), batch: int = 64, allowed: int = 0):
    settings = {"tiling": {"mpp": 1.0, "tile_px": EDGE, "min_tissue": 0}}
    recipe = make_recipe(Config.model_validate(settings), encoder)
    store = create_store(root, "h5")
    with open_slide(path) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        spoilt = Spoilt(slide, set(bad), set(missing))
        return embed(
            spoilt,  # pyright: ignore[reportArgumentType]
            located,
            encoder,
            recipe,
            store,
            batch=batch,
            max_bad_tiles=allowed,
        ), store


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_allowed_bad_tiles_are_left_out_counted_and_listed(
    flawed: Path, encoder, tmp_path: Path, batch: int
) -> None:
    info, store = spoil(flawed, encoder, tmp_path, {0, 9, 63}, {10, 62}, batch, allowed=3)
    assert info.counts == {"considered": 64, "planned": 64, "missing": 2, "bad": 3}
    assert info.bad_tiles == [
        {"xy0": [0, 0], "reason": "flawed.tif: no marker at row 0"},
        {"xy0": [64, 64], "reason": "flawed.tif: no marker at row 9"},
        {"xy0": [448, 448], "reason": "flawed.tif: no marker at row 63"},
    ]
    kept = {(x, y) for x, y in store.read("flawed").xy0.tolist()}
    gone = {(64 * (k % 8), 64 * (k // 8)) for k in (0, 9, 63, 10, 62)}
    assert kept == {(x, y) for x in range(0, 512, 64) for y in range(0, 512, 64)} - gone


@pytest.mark.parametrize(("bad", "allowed"), [({5}, 0), ({5, 6, 60}, 2)])
def test_one_bad_tile_too_many_stores_nothing(
    flawed: Path, encoder, tmp_path: Path, bad: set[int], allowed: int
) -> None:
    said = rf"{len(bad)} of 64 tiles.*level-0 \(320, 0\).*no marker at row 5.*{len(bad)}$"
    with pytest.raises(BadTilesError, match=f"^flawed.tif: {said}") as error:
        spoil(flawed, encoder, tmp_path, bad, allowed=allowed)
    assert error.value.bad == len(bad)
    assert list(tmp_path.iterdir()) == []


def test_missing_tiles_never_count_as_bad(flawed: Path, encoder, tmp_path: Path) -> None:
    info, _ = spoil(flawed, encoder, tmp_path, bad=(), missing=range(60))
    assert (info.n, info.counts["missing"]) == (4, 60)
    assert "bad" not in info.counts


def test_a_slide_without_one_tile_to_decode_is_never_empty(
    flawed: Path, encoder, tmp_path: Path
) -> None:
    with pytest.raises(BadTilesError, match="none of its 62 tiles with data can be decoded"):
        spoil(flawed, encoder, tmp_path, range(62), {62, 63}, allowed=1000)
    assert list(tmp_path.iterdir()) == []


def test_counting_bad_tiles_stops_somewhere(
    flawed: Path, encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi.tile_batches._LOOK_ON", 10)
    with pytest.raises(BadTilesError, match="at least 11 of 64 tiles"):
        spoil(flawed, encoder, tmp_path, range(64))
