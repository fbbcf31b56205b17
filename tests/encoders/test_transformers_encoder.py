"""Models of transformers, saved small in the hub's own layout and loaded as published ones are.

Compared with the plain API of transformers, pooled by hand in numpy.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi.encoders import CATALOG, Row, load_encoder
from wsi.encoders.weights import Weights
from wsi.errors import EncoderError
from wsi.specs import Component

transformers = pytest.importorskip("transformers")
TransformersEncoder = pytest.importorskip("wsi.encoders.transformers_encoder").TransformersEncoder

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
PX = 56


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, PX, PX, 3), np.uint8))


def made(kind: str) -> torch.nn.Module:
    """Return a small model with random weights that are nowhere nought or one."""
    common = SIZES | {"image_size": PX, "patch_size": 14}
    torch.manual_seed(1)
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**common, intermediate_size=96))
    elif kind == "dinov2":
        config = transformers.Dinov2Config(**common, use_swiglu_ffn=True)
        model = transformers.Dinov2Model(config)
    else:
        config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=4)
        model = transformers.Dinov2WithRegistersModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


ROWS: dict[str, Row] = {
    "vit": replace(CATALOG["phikon"], dim=48, resize=PX, tile_px=PX),
    "dinov2": replace(CATALOG["midnight-12k"], dim=96, resize=PX, tile_px=PX),
    "registers": replace(CATALOG["midnight-12k"], dim=96, resize=PX, tile_px=PX),
}


def expected(model: torch.nn.Module, row: Row, tiles: torch.Tensor) -> np.ndarray:
    """Return features by transformers' own call and numpy."""
    pixels = tiles.numpy().astype(np.float64) / 255
    images = ((pixels - row.mean) / row.std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        tokens = model(pixel_values=torch.from_numpy(images)).last_hidden_state.numpy()
    skipped = tokens.shape[1] - (PX // 14) ** 2
    if row.pooling == "cls":
        return tokens[:, 0]
    return np.concatenate([tokens[:, 0], tokens[:, skipped:].mean(axis=1)], axis=1)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_features_are_those_of_transformers_own_call(tmp_path, tiles, kind, file):
    model, row = made(kind), ROWS[kind]
    model.save_pretrained(tmp_path)
    if file.endswith(".bin"):
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / file)
        (tmp_path / "model.safetensors").unlink()
    encoder = TransformersEncoder(row, Weights("file", path=tmp_path), compute="fp32")
    found = encoder.embed(tiles).numpy()
    np.testing.assert_allclose(found, expected(model, row, tiles), rtol=1e-4, atol=1e-5)
    assert encoder.describe()["weights"] == tmp_path.name


def test_the_hash_of_weights_is_of_the_file_not_of_what_a_version_calls_them(tmp_path):
    made("dinov2").save_pretrained(tmp_path)
    first = TransformersEncoder(ROWS["dinov2"], Weights("file", path=tmp_path), compute="fp32")
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    again = TransformersEncoder(ROWS["dinov2"], Weights("file", path=tmp_path), compute="fp32")
    assert again.fingerprint == first.fingerprint
    weights["layernorm.bias"] += 1
    torch.save(weights, tmp_path / "pytorch_model.bin")
    other = TransformersEncoder(ROWS["dinov2"], Weights("file", path=tmp_path), compute="fp32")
    assert other.fingerprint != first.fingerprint


def test_a_cached_model_loads_offline_by_the_name_of_its_row(cache_files, monkeypatch, tmp_path):
    model = made("vit")
    model.save_pretrained(tmp_path)
    cache_files("owkin/phikon", {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = load_encoder(Component(name="phikon"))
    assert encoder.describe()["weights"] == "pretrained"
    assert encoder.describe()["file_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layernorm.weight"), "layernorm.weight missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra unexpected"),
        (lambda w: w.update({"layernorm.bias": torch.zeros(3)}), "layernorm.bias of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    made("dinov2").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=message):
        TransformersEncoder(ROWS["dinov2"], Weights("file", path=tmp_path))


def test_heads_and_what_only_training_needs_may_be_there_or_not(tmp_path, tiles):
    model = made("dinov2")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.mask_token"]
    weights["classifier.weight"] = torch.zeros(2, 96)
    save_file(weights, tmp_path / "model.safetensors")
    row = ROWS["dinov2"]
    encoder = TransformersEncoder(row, Weights("file", path=tmp_path), compute="fp32")
    found = encoder.embed(tiles).numpy()
    np.testing.assert_allclose(found, expected(model, row, tiles), rtol=1e-4, atol=1e-5)


def test_code_that_a_repository_brings_is_never_run(tmp_path, tiles):
    model = made("dinov2")
    model.save_pretrained(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    TransformersEncoder(ROWS["dinov2"], Weights("file", path=tmp_path)).embed(tiles)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "not a configuration"), ('{"model_type": "bert"}', "of a 'bert'")]
)
def test_another_kind_of_model_is_refused(tmp_path, text, message):
    made("vit").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(EncoderError, match=message):
        TransformersEncoder(ROWS["vit"], Weights("file", path=tmp_path))


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    row = replace(ROWS["vit"], kwargs=SIZES | {"image_size": PX, "patch_size": 14})
    torch.manual_seed(0)
    expected_next = torch.rand(3)
    torch.manual_seed(0)
    prints = [TransformersEncoder(row, Weights("random", seed)).fingerprint for seed in (0, 0, 1)]
    torch.testing.assert_close(torch.rand(3), expected_next)
    assert prints[0] == prints[1] != prints[2]
