"""What networks compute in, and what that does to features and fingerprints."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest
import timm
import torch

from wsi.encoders import CATALOG, compute, load_encoder
from wsi.encoders.compute import cpu_has_bf16, settle_precision
from wsi.encoders.network import Network
from wsi.encoders.timm_encoder import fold_norms
from wsi.encoders.weights import weights_hash
from wsi.errors import ConfigError
from wsi.specs import Component

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
VIT = Component.model_validate(
    {"name": "timm:vit_tiny_patch16_224", "weights": "random", "pooling": "cls+mean"}
)
RESNET = Component.model_validate({"name": "timm:resnet18", "weights": "random"})


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (6, 3, 14, 14), np.uint8)).float()
    fine = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic")
    return fine.clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_gpus_compute_in_what_they_do_natively(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert settle_precision("auto", CUDA) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_takes_bf16_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: native)
    assert settle_precision("auto", CPU) == expected
    assert settle_precision("fp32", CPU) == "fp32"
    assert settle_precision("bf16", CPU) == "bf16"
    assert settle_precision("auto", torch.device("mps")) == "fp32"


def test_the_probe_agrees_with_the_flags_of_the_processor():
    cpuinfo = pytest.importorskip("pathlib").Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = cpuinfo.read_text().split()
    assert cpu_has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(("word", "message"), [("fp16", "for GPUs"), ("fp8", "choose from auto")])
def test_what_a_device_cannot_do_is_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        settle_precision(word, CPU)


@pytest.mark.parametrize("component", [VIT, RESNET], ids=["tokens", "maps"])
def test_bf16_features_point_where_fp32_features_do(tiles, component):
    exact = load_encoder(component, compute="fp32").embed(tiles)
    fast = load_encoder(component, compute="bf16").embed(tiles)
    assert fast.dtype == torch.float32
    assert float(torch.cosine_similarity(exact, fast).min()) > 0.999
    assert not torch.equal(exact, fast)  # else nothing was computed in bf16


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_folding_normalisations_changes_nothing_but_rounding(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        fold_norms(model)
        found = model(images)
    left = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(left) == (
        1 if name.endswith("d") else 0
    )  # that of a deep stem follows no single one
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_type_is_recorded_and_makes_another_fingerprint_unless_fp32():
    encoders = {word: load_encoder(VIT, compute=word) for word in ("fp32", "bf16")}
    assert {word: e.describe()["compute"] for word, e in encoders.items()} == {
        "fp32": "fp32",
        "bf16": "bf16",
    }
    assert encoders["fp32"].fingerprint != encoders["bf16"].fingerprint


def test_fp32_fingerprints_are_those_of_bags_made_before_there_was_a_choice():
    component = Component.model_validate({"name": "resnet50", "weights": "random"})
    encoder = load_encoder(component, compute="fp32")
    assert isinstance(encoder, Network)
    row = CATALOG["resnet50"]
    made = {
        "name": "resnet50",
        "weights": weights_hash(encoder._model.state_dict()),
        "transform": [224, None, "bilinear", list(row.mean), list(row.std)],
        "pooling": "layer3",
        "dim": 1024,
    }
    text = json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert encoder.fingerprint == sha256(text.encode()).hexdigest()


def test_texture_stays_in_fp32_whatever_is_asked_for(tiles):
    plain = load_encoder(Component(name="texture-v1"), compute="fp32")
    asked = load_encoder(Component(name="texture-v1"), compute="bf16")
    assert asked.fingerprint == plain.fingerprint
    assert asked.describe()["compute"] == "fp32"
    assert torch.equal(asked.embed(tiles), plain.embed(tiles))


def test_random_weights_are_told_in_warning_record_and_name():
    encoder = load_encoder(RESNET)
    assert "never trained" in encoder.info.warning
    described = encoder.describe()
    assert (described["name"], described["weights"]) == ("timm:resnet18-random", "random")
