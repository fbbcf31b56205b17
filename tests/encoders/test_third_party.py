"""Encoders of other packages, by the entry point `wsi.encoders`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from wsi.encoders import ENCODERS, Encoder, EncoderInfo, encoder_info, load_encoder
from wsi.encoders.available import preflight
from wsi.errors import ConfigError, UnknownNameError
from wsi.specs import Component


class MeanColour(Encoder):
    """Mean colour, scaled."""

    def __init__(self, device: str = "cpu", compute: str = "auto", *, scale: float = 1.0) -> None:
        self.info = EncoderInfo("mean-colour", 3, 64, 1.0, "none", "MIT", False, "elsewhere")
        self.fingerprint = "0" * 64
        self.told = (device, compute)
        self._scale = scale

    def _embed(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.float().mean(dim=(1, 2)) / 255 * self._scale

    def _input(self, tile_px: int) -> tuple[int, int]:
        return tile_px, tile_px


class Plain(MeanColour):
    """The same, without being told what to compute in."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device, "nothing")


@pytest.fixture(autouse=True)
def other_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module: Any = ModuleType("wsi_other_package")
    module.MeanColour, module.Plain = MeanColour, Plain
    monkeypatch.setitem(sys.modules, "wsi_other_package", module)
    added = [
        importlib.metadata.EntryPoint(name, f"wsi_other_package:{kind}", "wsi.encoders")
        for name, kind in (("mean-colour", "MeanColour"), ("plain", "Plain"), ("uni", "Plain"))
    ]
    monkeypatch.setattr(
        "wsi.registry.entry_points", lambda group: added if group == "wsi.encoders" else []
    )
    ENCODERS.__dict__.pop("_targets", None)
    yield
    ENCODERS.__dict__.pop("_targets", None)


def component(name: str, **params: object) -> Component:
    return Component.model_validate({"name": name, **params})


def test_a_class_of_another_package_embeds_with_its_settings() -> None:
    encoder = load_encoder(component("mean-colour", scale=2), "cpu", compute="bf16")
    assert isinstance(encoder, MeanColour)
    assert encoder.told == ("cpu", "bf16")
    features = encoder.embed(torch.full((2, 64, 64, 3), 51, dtype=torch.uint8))
    torch.testing.assert_close(features, torch.full((2, 3), 0.4))


def test_a_class_that_does_not_ask_is_not_told_what_to_compute_in() -> None:
    encoder = load_encoder(component("plain"), "cpu", compute="bf16")
    assert isinstance(encoder, Plain)
    assert encoder.told == ("cpu", "nothing")


def test_it_is_described_checked_and_listed_like_ours(said_by_list) -> None:
    assert encoder_info(component("mean-colour")).dim == 3
    assert preflight(component("mean-colour")).cached
    assert said_by_list["mean-colour"]["source"] == "another package"
    assert "resnet50" in said_by_list


def test_a_configuration_may_name_it() -> None:
    from pipelines.config import load_config

    assert load_config(["encoder=mean-colour", "encoder.scale=3"]).encoder.name == "mean-colour"


def test_a_name_of_the_catalogue_stays_with_its_row() -> None:
    assert encoder_info(component("uni")).source == "hf-hub:MahmoodLab/UNI"
    assert not isinstance(load_encoder(component("resnet50", weights="random")), MeanColour)


def test_misspelt_names_and_settings_are_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mean-colour'"):
        load_encoder(component("mean-color"))
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        load_encoder(component("mean-colour", scales=2))


@pytest.fixture
def said_by_list(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    import json

    from pipelines.cli import run_command

    assert run_command(["list", "encoders", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}
