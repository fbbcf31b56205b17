"""Features of unchanged tiles are taken from the earlier bag: the same result, fewer tiles read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shapely import MultiPolygon, box

from wsi.bags import BagInfo, BagStore, create_store
from wsi.encoders import load_encoder
from wsi.extract import embed, locate, make_recipe
from wsi.slides import Slide, open_slide
from wsi.specs import Component, Config, PixelsSpec, TissueSpec
from wsi.tissue import Edits, OwnTissue

CONFIG = Config.model_validate({"tiling": {"mpp": 1.0, "tile_px": 64}})


class Counting:
    """The texture encoder, keeping count of the tiles it is given."""

    def __init__(self) -> None:
        self._encoder = load_encoder(Component(name="texture-v1"))
        self.seen = 0

    def __getattr__(self, name: str):
        return getattr(self._encoder, name)

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        self.seen += len(tiles)
        return self._encoder.embed(tiles)


@pytest.fixture
def encoder() -> Counting:
    return Counting()


def drawn(*parts) -> OwnTissue:
    return OwnTissue(edits=Edits(mask=MultiPolygon(parts)))


def run(
    slide_path: Path, store: BagStore, encoder: Counting, own: OwnTissue | None = None, **more
) -> BagInfo:
    config = CONFIG.model_copy(update=more)
    recipe = make_recipe(config, encoder)  # pyright: ignore[reportArgumentType]
    encoder.seen = 0
    with open_slide(slide_path) as slide:
        located = locate(slide, recipe.tissue, recipe.tiling, own)
        return embed(slide, located, encoder, recipe, store, batch=5)  # pyright: ignore[reportArgumentType]


def assert_equal_bags(one: BagStore, other: BagStore) -> None:
    a, b = one.read("a"), other.read("a")
    np.testing.assert_array_equal(a.xy0, b.xy0)
    np.testing.assert_array_equal(a.tissue, b.tissue)
    np.testing.assert_allclose(  # to a last digit of float16: batches are cut elsewhere
        a.features.astype(float), b.features.astype(float), rtol=2e-3, atol=2e-4
    )
    assert a.quality is not None
    assert b.quality is not None
    for name in a.quality:
        np.testing.assert_array_equal(a.quality[name], b.quality[name])
    assert one.info("a").key == other.info("a").key
    assert one.verify("a") == []


@pytest.mark.parametrize("kind", ["h5", "zarr"])
@pytest.mark.parametrize(
    "area",
    [
        box(0, 0, 512, 1024),  # fewer tiles, some of them new
        box(0, 0, 1024, 1024),  # more tiles, around the old ones
        box(300, 300, 700, 700),  # old tiles only
        box(0, 0, 130, 130),  # new tiles only
    ],
)
def test_a_new_mask_costs_the_new_tiles_alone(
    slide_folder: Path, tmp_path: Path, encoder: Counting, kind: str, area
) -> None:
    path = slide_folder / "a.svs"
    store, fresh = (create_store(tmp_path / name, kind) for name in ("store", "fresh"))
    before = run(path, store, encoder)
    assert encoder.seen == before.n
    held = {tuple(xy) for xy in store.read("a").xy0.tolist()}
    after = run(path, store, encoder, drawn(area))
    added = [xy for xy in store.read("a").xy0.tolist() if tuple(xy) not in held]
    assert encoder.seen == len(added)
    assert after.counts.get("reused", 0) == after.n - len(added)
    assert run(path, fresh, encoder, drawn(area)).n == encoder.seen == after.n
    assert_equal_bags(store, fresh)


def test_the_bound_of_the_rounding_error_is_kept(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    store = create_store(tmp_path, "h5")
    before = run(slide_folder / "a.svs", store, encoder)
    after = run(slide_folder / "a.svs", store, encoder, drawn(box(300, 300, 700, 700)))
    assert encoder.seen == 0
    assert after.max_rel_error == before.max_rel_error is not None


def test_another_file_resolution_or_precision_is_read_anew(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    everywhere = drawn(box(0, 0, 1024, 1024))
    changes = [
        (slide_folder / "site" / "b.tif", {}),
        (slide_folder / "a.svs", {"precision": "float32"}),
        (slide_folder / "a.svs", {"tiling": CONFIG.tiling.model_copy(update={"mpp": 2.0})}),
    ]
    for k, (path, more) in enumerate(changes):
        store = create_store(tmp_path / str(k), "h5")
        run(slide_folder / "a.svs", store, encoder)
        with open_slide(path, "a") as slide:
            recipe = make_recipe(CONFIG.model_copy(update=more), encoder)  # pyright: ignore[reportArgumentType]
            located = locate(slide, recipe.tissue, recipe.tiling, everywhere)
            info = embed(slide, located, encoder, recipe, store)  # pyright: ignore[reportArgumentType]
        assert "reused" not in info.counts


def test_a_resolution_from_the_table_is_another_slide(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    store = create_store(tmp_path, "h5")
    run(slide_folder / "a.svs", store, encoder)
    recipe = make_recipe(CONFIG, encoder)  # pyright: ignore[reportArgumentType]
    with open_slide(slide_folder / "a.svs", mpp=0.25) as slide:
        located = locate(slide, TissueSpec(), recipe.tiling, drawn(box(0, 0, 1024, 1024)))
        info = embed(slide, located, encoder, recipe, store)  # pyright: ignore[reportArgumentType]
    assert "reused" not in info.counts


def test_a_damaged_bag_gives_nothing(slide_folder: Path, tmp_path: Path, encoder: Counting) -> None:
    store, fresh = (create_store(tmp_path / name, "h5") for name in ("store", "fresh"))
    run(slide_folder / "a.svs", store, encoder)
    path = tmp_path / "store" / "a.h5"
    content = bytearray(path.read_bytes())
    at = bytes(content).index(store.read("a").features[3].tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    own = drawn(box(0, 0, 512, 1024))
    info = run(slide_folder / "a.svs", store, encoder, own)
    assert "reused" not in info.counts
    run(slide_folder / "a.svs", fresh, encoder, own)
    assert_equal_bags(store, fresh)


def test_a_tile_without_data_is_missing_again(
    slide_folder: Path, tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Slide.read_tiles

    def with_a_hole(self, xy0, tile_px, mpp):
        corners = list(xy0)
        for corner, tile in zip(corners, read(self, iter(corners), tile_px, mpp), strict=True):
            yield None if corner == (384, 512) else tile

    with open_slide(slide_folder / "a.svs") as slide:
        monkeypatch.setattr(type(slide), "read_tiles", with_a_hole)
    store, fresh = (create_store(tmp_path / name, "h5") for name in ("store", "fresh"))
    own = drawn(box(0, 0, 512, 1024))
    run(slide_folder / "a.svs", store, encoder)
    info = run(slide_folder / "a.svs", store, encoder, own)
    assert info.counts["missing"] == 1
    assert info.counts["reused"] > 5
    assert run(slide_folder / "a.svs", fresh, encoder, own).counts["missing"] == 1
    assert_equal_bags(store, fresh)


def test_scores_do_not_depend_on_what_a_person_drew(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    """Two masks of one slide give the same scores to the tiles they share."""
    one, two = (create_store(tmp_path / name, "h5") for name in ("one", "two"))
    run(slide_folder / "a.svs", one, encoder, drawn(box(0, 0, 640, 1024)))
    run(slide_folder / "a.svs", two, encoder, drawn(box(0, 0, 1024, 640)))
    a, b = one.read("a"), two.read("a")
    at = {tuple(xy): row for row, xy in enumerate(b.xy0.tolist())}
    shared = [(i, at[tuple(xy)]) for i, xy in enumerate(a.xy0.tolist()) if tuple(xy) in at]
    assert len(shared) == 25
    rows = np.asarray(shared)
    for name, values in (a.quality or {}).items():
        np.testing.assert_array_equal(values[rows[:, 0]], (b.quality or {})[name][rows[:, 1]])


def test_settings_of_the_slide_that_find_another_mask_keep_the_result_right(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    store, fresh = (create_store(tmp_path / name, "h5") for name in ("store", "fresh"))
    own = OwnTissue(replace_spec(mpp=18.0))
    run(slide_folder / "a.svs", store, encoder)
    run(slide_folder / "a.svs", store, encoder, own)
    run(slide_folder / "a.svs", fresh, encoder, own)
    assert_equal_bags(store, fresh)


def test_stains_fitted_to_another_mask_are_not_mixed(
    slide_folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    pixels = PixelsSpec.model_validate({"stain": "macenko"})
    store, fresh = (create_store(tmp_path / name, "h5") for name in ("store", "fresh"))
    own = drawn(box(0, 0, 512, 1024))
    run(slide_folder / "a.svs", store, encoder, pixels=pixels)
    run(slide_folder / "a.svs", store, encoder, own, pixels=pixels)
    run(slide_folder / "a.svs", fresh, encoder, own, pixels=pixels)
    assert_equal_bags(store, fresh)


def replace_spec(**settings: float) -> TissueSpec:
    return TissueSpec.model_validate(TissueSpec().model_dump() | settings)
