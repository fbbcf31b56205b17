"""Recipes, and one slide from tissue to bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi.bags import create_store
from wsi.encoders import encoder_info, load_encoder
from wsi.errors import BagError, ConfigError
from wsi.extract import embed, locate, make_recipe, settle_tiling
from wsi.slides import open_slide
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
    for more in ({"precision": "float32"}, {"tissue": {"mpp": 4}}):
        recipe = make_recipe(Config.model_validate(full | more), encoder)
        keys.append(recipe.provenance(info).key)
    keys.append(make_recipe(config(), encoder).provenance(stretched).key)
    assert len(set(keys)) == len(keys)
    same = make_recipe(config(), encoder)
    assert same.provenance(info).key == keys[0]
    unrelated = Config.model_validate(full | {"fit": {"epochs": 3}, "store": "zarr"})
    assert make_recipe(unrelated, encoder).provenance(info).key == keys[0]


def test_the_key_needs_no_tissue_search(slide_folder: Path, encoder) -> None:
    recipe = make_recipe(config(), encoder)
    with open_slide(slide_folder / "a.svs") as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        planned, made = recipe.provenance(slide.info), recipe.provenance(slide.info, located)
    assert (planned.key, planned.recipe_key) == (made.key, made.recipe_key)


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
