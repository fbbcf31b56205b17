"""Published vision transformers, saved small in the hub's own layout and loaded by their rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from wsi.encoders import CATALOG, Row
from wsi.encoders.row import IMAGENET_MEAN, IMAGENET_STD
from wsi.encoders.timm_encoder import TimmEncoder
from wsi.encoders.weights import Weights
from wsi.errors import EncoderError

PX = 56
SMALL = {"img_size": PX, "patch_size": 14, "depth": 2, "num_heads": 3, "embed_dim": 48}
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
# Architecture, further arguments, and how many tokens stand before those of patches.
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "virchow": ("vit_huge_patch14_224", {"mlp_ratio": 5.3375, "global_pool": ""}, 1),
    "virchow2": (
        "vit_huge_patch14_224",
        {"mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": 4},
        5,
    ),
    "uni2-h": (
        "vit_giant_patch14_224",
        {"mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8},
        9,
    ),
    "h0-mini": ("vit_base_patch14_reg4_dinov2", {"mlp_ratio": 5.33334}, 5),
}


def made(name: str) -> nn.Module:
    """Return a small model of the same family with weights that are nowhere nought or one."""
    architecture, further, _ = KINDS[name]
    torch.manual_seed(2)
    arguments = SMALL | further | SWIGLU
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def saved(model: nn.Module, folder: Path, row: Row, **arguments: Any) -> Path:
    """Write `config.json` and `model.safetensors` as the authors of such models did.

    Their layers are not in it: those stand in the call on the card.
    """
    config = {
        "architecture": row.architecture,
        "num_classes": 0,
        "num_features": 48,
        "global_pool": arguments.pop("global_pool", "token"),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, PX, PX],
            "fixed_input_size": True,
            "mean": list(row.mean),
            "std": list(row.std),
            "num_classes": 0,
        },
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def small_row(name: str) -> Row:
    """Return the row with what its card's own call adds to the configuration, scaled down."""
    row = CATALOG[name]
    kwargs = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    dim = 96 if row.pooling == "cls+mean" else 48
    return replace(row, dim=dim, resize=PX, tile_px=PX, kwargs=kwargs)


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, PX, PX, 3), np.uint8))


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_timms_own_call(tmp_path: Path, tiles: torch.Tensor, name: str):
    model, row = made(name), small_row(name)
    saved(model, tmp_path / "repo", row, **SMALL, **KINDS[name][1])
    encoder = TimmEncoder(row, Weights("file", path=tmp_path / "repo"), compute="fp32")
    pixels = tiles.numpy().astype(np.float64) / 255
    images = ((pixels - row.mean) / row.std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        output = model(torch.from_numpy(images)).numpy()
        tokens = model.forward_features(torch.from_numpy(images)).numpy()
    prefix = KINDS[name][2]
    assert tokens.shape == (3, prefix + (PX // 14) ** 2, 48)
    if name.startswith("virchow"):  # as on its card: all tokens come out, pooled by the user
        expected = np.concatenate([output[:, 0], output[:, prefix:].mean(axis=1)], axis=1)
    else:  # the model pools the class token itself
        expected = output
        np.testing.assert_allclose(output, tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(tiles).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_file_alone_is_read_into_the_architecture_of_the_row(tmp_path: Path, tiles) -> None:
    model = made("virchow2")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    own = small_row("virchow2")
    row = replace(own, kwargs={**own.kwargs, **SMALL, **KINDS["virchow2"][1]})
    by_file = TimmEncoder(row, Weights("file", path=tmp_path / "model.safetensors"))
    folder = saved(model, tmp_path / "repo", row, **SMALL, **KINDS["virchow2"][1])
    by_folder = TimmEncoder(own, Weights("file", path=folder))
    assert by_file.fingerprint == by_folder.fingerprint
    torch.testing.assert_close(by_file.embed(tiles), by_folder.embed(tiles))


def test_a_pickled_checkpoint_of_a_training_run_is_read(cache_files, tmp_path, monkeypatch) -> None:
    small = {"img_size": PX, "depth": 2, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_large_patch14_dinov2", num_classes=0, init_values=1.0, **small)
    torch.save({"state_dict": model.state_dict(), "epoch": 7}, tmp_path / "GPFM.pth")
    cache_files("majiabo/GPFM", {"GPFM.pth": (tmp_path / "GPFM.pth").read_bytes()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    row = replace(CATALOG["gpfm"], dim=48, resize=PX, kwargs={"init_values": 1.0, **small})
    encoder = TimmEncoder(row, Weights(), compute="fp32")
    batch = torch.randint(0, 256, (2, PX, PX, 3), dtype=torch.uint8)
    with torch.inference_mode():
        theirs = model.eval()(encoder.transform(batch))
    torch.testing.assert_close(encoder.embed(batch), theirs, rtol=1e-4, atol=1e-5)


def test_position_embeddings_are_never_resampled_without_a_word(tmp_path: Path) -> None:
    model = made("virchow2")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    own = small_row("virchow2")
    larger = {**own.kwargs, **SMALL, **KINDS["virchow2"][1], "img_size": 84}
    row = replace(own, kwargs=larger)
    with pytest.raises(EncoderError, match="pos_embed of another shape"):
        TimmEncoder(row, Weights("file", path=tmp_path / "w.safetensors"))


def test_a_configuration_that_contradicts_the_catalogue_is_refused(tmp_path: Path) -> None:
    row = small_row("virchow2")
    folder = saved(made("virchow2"), tmp_path / "repo", row, **SMALL, **KINDS["virchow2"][1])
    rounded = tuple(round(value, 2) for value in IMAGENET_MEAN)
    for theirs, message in ((rounded, "says mean"), ((0.5, 0.5, 0.5), "one of them is wrong")):
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"]["mean"] = theirs
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(EncoderError, match=message):
            TimmEncoder(row, Weights("file", path=folder))
        TimmEncoder(replace(row, card_over_config=True), Weights("file", path=folder))
    assert row.std == IMAGENET_STD


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ('{"model_type": "vit"}', "no architecture")]
)
def test_a_configuration_of_something_else_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.json").write_text(text)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=message):
        TimmEncoder(CATALOG["uni"], Weights("file", path=tmp_path))


def test_weights_of_half_the_digits_are_computed_with_in_full(tmp_path: Path, tiles) -> None:
    row = small_row("h0-mini")
    folder = saved(made("h0-mini"), tmp_path / "repo", row, **SMALL, **KINDS["h0-mini"][1])
    weights = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    features = TimmEncoder(row, Weights("file", path=folder), compute="fp32").embed(tiles)
    assert not torch.equal(features, features.half().float())
