"""Settings: frozen, strict, and consistent with each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from wsi.specs import Config, DataSpec, FitSpec, SlidesSpec, SplitSpec, TilingSpec


def test_the_defaults_are_those_of_the_contract() -> None:
    config = Config()
    assert (config.tiling.mpp, config.tiling.tile_px, config.tiling.stride) == (
        "auto",
        "auto",
        None,
    )
    assert config.tiling.min_tissue == 0.05
    assert (config.store, config.precision) == ("h5", "float16")
    assert (config.aggregator.name, config.objective.name) == ("abmil", "ce")
    assert config.slides.no_mpp == "quarantine"
    assert config.data.missing == "error"


def test_a_setting_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(ValidationError):
        Config().tiling.min_tissue = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("spec", "bad"),
    [
        (TilingSpec, {"mpp": 0.049}),
        (TilingSpec, {"mpp": 20.1}),
        (TilingSpec, {"mpp": float("nan")}),
        (TilingSpec, {"mpp": "20x"}),
        (TilingSpec, {"tile_px": 15}),
        (TilingSpec, {"tile_px": 224.5}),
        (TilingSpec, {"stride": 0}),
        (TilingSpec, {"stride": float("nan")}),
        (TilingSpec, {"stride": float("inf")}),
        (TilingSpec, {"min_tissue": 1.01}),
        (TilingSpec, {"max_upsampling": 0.99}),
        (TilingSpec, {"max_upsampling": float("nan")}),
        (SlidesSpec, {"no_mpp": "assume"}),
        (SlidesSpec, {"assume_mpp": 0.5}),
        (SlidesSpec, {"no_mpp": "ignore"}),
        (DataSpec, {"classes": ["a"]}),
        (DataSpec, {"classes": ["a", "a"]}),
        (SplitSpec, {"kind": "sites"}),
        (SplitSpec, {"test": ["3"]}),
        (SplitSpec, {"folds": 1}),
        (FitSpec, {"seeds": 0}),
        (FitSpec, {"seeds": [1, 1]}),
        (FitSpec, {"lr": float("nan")}),
    ],
)
def test_a_value_out_of_range_is_refused(spec: type, bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**bad)


def test_a_count_of_seeds_means_the_first_ones() -> None:
    assert FitSpec(seeds=3).seeds == (0, 1, 2)  # pyright: ignore[reportArgumentType]
    assert FitSpec(seeds=[4, 7]).seeds == (4, 7)  # pyright: ignore[reportArgumentType]


def test_site_numbers_are_names() -> None:
    assert SplitSpec(kind="sites", test=[3, 4]).test == ("3", "4")  # pyright: ignore[reportArgumentType]


def test_a_name_alone_is_a_component_and_its_parameters_stand_beside_it() -> None:
    config = Config.model_validate({"aggregator": {"name": "abmil", "hidden": 64}})
    assert (config.aggregator.name, config.aggregator.params) == ("abmil", {"hidden": 64})
    assert Config.model_validate({"objective": "ncmi"}).objective.params == {}
