"""timm models as encoders, against timm's own transform, forward pass and feature maps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from wsi.encoders import CATALOG, encoder_info, load_encoder
from wsi.encoders.timm_encoder import TimmEncoder, row_of_model
from wsi.encoders.weights import Weights
from wsi.errors import ConfigError, EncoderError, UnknownNameError, UnsafeWeightsError
from wsi.specs import Component

VIT = "vit_tiny_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"


def component(name: str, **params: object) -> Component:
    return Component.model_validate({"name": name, **params})


def random_encoder(name: str, **params: object) -> TimmEncoder:
    encoder = load_encoder(component(name, weights="random", **params), compute="fp32")
    assert isinstance(encoder, TimmEncoder)
    return encoder


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    images = [Image.fromarray(c).resize((256, 256), Image.Resampling.BICUBIC) for c in coarse]
    return torch.from_numpy(np.stack([np.asarray(i) for i in images]))


def same_model(name: str, seed: int = 0, **kwargs: object) -> torch.nn.Module:
    """Return timm's own model with the weights that `seed` gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, num_classes=0, **kwargs).eval()


@pytest.mark.parametrize(
    ("name", "px"), [("resnet18", 512), ("resnet18.tv_in1k", 256), (VIT, 224), (VIT, 512)]
)
def test_the_transform_is_timms_own_to_a_grey_level(tiles, name, px):
    encoder = random_encoder(f"timm:{name}")
    images = [Image.fromarray(t.numpy()).resize((px, px)) for t in tiles]
    config = resolve_model_data_config(same_model(name))
    theirs = torch.stack([create_transform(**config)(image) for image in images])
    ours = encoder.transform(torch.from_numpy(np.stack([np.asarray(i) for i in images])))
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
    assert float(difference.max()) <= 2.01
    assert float(difference.mean()) < 0.3


@pytest.mark.parametrize("name", ["resnet18", VIT])
def test_default_pooling_is_the_models_own_forward(tiles, name):
    encoder = random_encoder(f"timm:{name}")
    with torch.inference_mode():
        theirs = same_model(name)(encoder.transform(tiles))
    torch.testing.assert_close(encoder.embed(tiles), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "prefix"), [(VIT, 1), (REGISTERS, 5)])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_token_pooling_skips_class_and_register_tokens(name, prefix, pooling):
    small = {"depth": 2, "img_size": 56, "patch_size": 14}
    row = row_of_model("x", f"timm:{name}")
    row = replace(row, kwargs=small, resize=56, crop=56, pooling=pooling)
    dim = row.dim * (2 if pooling == "cls+mean" else 1)
    encoder = TimmEncoder(replace(row, dim=dim), Weights("random", 3), compute="fp32")
    batch = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    with torch.inference_mode():
        tokens = same_model(name, 3, **small).forward_features(encoder.transform(batch)).numpy()
    assert tokens.shape[1] == prefix + 16
    parts = {"cls": tokens[:, 0], "mean": tokens[:, prefix:].mean(axis=1)}
    expected = np.concatenate([parts[part] for part in pooling.split("+")], axis=1)
    np.testing.assert_allclose(encoder.embed(batch).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_models_that_average_tokens_keep_their_last_normalisation():
    row = replace(row_of_model("x", f"timm:{VIT}"), kwargs={"global_pool": "avg", "depth": 2})
    encoder = TimmEncoder(replace(row, pooling="mean"), Weights("random"), compute="fp32")
    batch = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    model = same_model(VIT, global_pool="avg", depth=2)
    with torch.inference_mode():
        theirs = model(encoder.transform(batch))
    torch.testing.assert_close(encoder.embed(batch), theirs, rtol=1e-4, atol=1e-5)


def test_resnet50_is_the_mean_of_timms_third_feature_map(tiles):
    encoder = random_encoder("resnet50", seed=5)
    full = same_model("resnet50.tv_in1k", 5)
    maps = timm.create_model("resnet50.tv_in1k", features_only=True, out_indices=(3,)).eval()
    maps.load_state_dict(full.state_dict(), strict=False)
    with torch.inference_mode():
        theirs = maps(encoder.transform(tiles))[0]
    assert theirs.shape == (3, 1024, 14, 14)
    torch.testing.assert_close(encoder.embed(tiles), theirs.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_resizing_and_cropping_set_the_resolution_seen():
    resized = random_encoder("resnet50").describe()
    assert (resized["input_px"], resized["effective_mpp"]) == (224, 0.571429)
    assert resized["fov_um"] == pytest.approx(128)
    cropped = random_encoder("timm:resnet18").describe(tile_px=224, mpp=0.5)
    assert cropped["effective_mpp"] == pytest.approx(0.5 * 224 / 235, abs=1e-5)
    assert "0.5 um per pixel assumed" in cropped["note"]


def test_tiles_smaller_than_a_crop_without_resizing_are_refused():
    row = replace(CATALOG["resnet50"], resize=None, crop=224)
    encoder = TimmEncoder(row, Weights("random"))
    with pytest.raises(EncoderError, match="smaller"):
        encoder.embed(torch.zeros(1, 200, 200, 3, dtype=torch.uint8))


# -- fingerprints -----------------------------------------------------------------------------


def test_fingerprints_follow_weights_transform_and_pooling():
    base = replace(CATALOG["resnet50"], load="timm:resnet18", pooling="default", dim=512)
    variants = {
        "base": TimmEncoder(base, Weights("random", 0)),
        "seed": TimmEncoder(base, Weights("random", 1)),
        "resize": TimmEncoder(replace(base, resize=256), Weights("random", 0)),
        "mean": TimmEncoder(replace(base, mean=(0.5, 0.5, 0.5)), Weights("random", 0)),
        "pooling": TimmEncoder(replace(base, pooling="layer3", dim=256), Weights("random", 0)),
    }
    prints = [encoder.fingerprint for encoder in variants.values()]
    assert len(set(prints)) == len(prints)
    assert TimmEncoder(base, Weights("random", 0)).fingerprint == prints[0]


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_encoder("timm:resnet18", seed=9)
    torch.testing.assert_close(torch.rand(3), expected)


# -- weights ----------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache, and a hub at an address where nothing answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.file_download.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def fake_cache(cache: Path, repo: str, files: dict[str, bytes]) -> None:
    """Write `files` as the hub's client would have cached them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18", "hf-hub:org/model"])
def test_weights_out_of_reach_name_model_cache_and_the_way_on(no_hub, name):
    with pytest.raises(EncoderError) as caught:
        load_encoder(component(name))
    for part in (name, str(no_hub), "texture-v1"):
        assert part in str(caught.value)


def test_offline_says_so_without_asking_the_network(no_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE"):
        load_encoder(component("timm:resnet18"))


def test_cached_weights_load_strictly_without_a_network(no_hub, tmp_path, tiles):
    full = timm.create_model("resnet18", pretrained=False)  # with its classifier, as published
    save_file(full.state_dict(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    fake_cache(no_hub, "timm/resnet18.a1_in1k", {"model.safetensors": content})
    encoder = load_encoder(component("timm:resnet18"), compute="fp32")
    assert isinstance(encoder, TimmEncoder)
    with torch.inference_mode():
        images = encoder.transform(tiles)
        theirs = full.eval().forward_head(full.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder.embed(tiles), theirs, rtol=1e-4, atol=1e-5)
    assert encoder.describe()["weights"] == "pretrained"


def test_a_hub_repository_is_built_from_its_own_configuration(no_hub, tmp_path, tiles):
    model = timm.create_model(VIT, pretrained=False, num_classes=0, depth=2, img_size=112)
    args = {"depth": 2, "img_size": 112}
    timm.models.save_for_hf(model, tmp_path / "repo", model_args=args, safe_serialization=True)
    files = {p.name: p.read_bytes() for p in (tmp_path / "repo").iterdir()}
    assert sorted(files) == ["config.json", "model.safetensors"]
    fake_cache(no_hub, "org/model", files)
    encoder = load_encoder(component("hf-hub:org/model", pooling="cls"), compute="fp32")
    assert isinstance(encoder, TimmEncoder)
    with torch.inference_mode():
        theirs = model.eval().forward_features(encoder.transform(tiles))[:, 0]
    torch.testing.assert_close(encoder.embed(tiles), theirs, rtol=1e-4, atol=1e-5)


def test_a_local_file_is_loaded_and_only_its_name_recorded(tmp_path, tiles):
    model = same_model("resnet18", seed=7)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    mine = component("timm:resnet18", weights=str(tmp_path / "mine.safetensors"))
    encoder = load_encoder(mine, compute="fp32")
    same = random_encoder("timm:resnet18", seed=7)
    torch.testing.assert_close(encoder.embed(tiles), same.embed(tiles))
    assert encoder.fingerprint == same.fingerprint
    assert encoder.describe()["weights"] == "mine.safetensors"
    assert str(tmp_path) not in str(encoder.describe())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv1.weight"), "conv1.weight missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra unexpected"),
        (lambda w: w.update({"bn1.bias": torch.zeros(3)}), "bn1.bias of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    weights = dict(same_model("resnet18").state_dict())
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match=message):
        load_encoder(component("timm:resnet18", weights=str(tmp_path / "w.safetensors")))


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_weights_file_never_runs(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"conv1.weight": Canary(canary)}, tmp_path / "w.bin")
    with pytest.raises(UnsafeWeightsError, match=r"w\.bin holds more than tensors"):
        load_encoder(component("timm:resnet18", weights=str(tmp_path / "w.bin")))
    assert not canary.exists()


def test_a_file_that_is_not_weights_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    torch.save([1, 2], tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth", "absent.safetensors"):
        with pytest.raises(EncoderError, match=name):
            load_encoder(component("timm:resnet18", weights=str(tmp_path / name)))


# -- names and settings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("textur-v1", "did you mean 'texture-v1'"),
        ("timm:resnet81", "resnet18"),
        ("timm:resnet18.nope", r"resnet18\.a1_in1k"),
        ("unii", "did you mean 'uni'"),
    ],
)
@pytest.mark.parametrize("function", [load_encoder, encoder_info])
def test_an_unknown_name_suggests_the_nearest(function, name, message):
    with pytest.raises(UnknownNameError, match=message):
        function(component(name))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("timm:resnet18", {"weight": "random"}, "did you mean 'weights'"),
        ("texture-v1", {"weights": "random"}, "no setting 'weights'"),
        ("resnet50", {"pooling": "cls"}, "no setting 'pooling'"),
        ("timm:resnet18", {"pooling": "max"}, "cls"),
        ("timm:resnet18", {"seed": 1}, "weights=random"),
        ("timm:resnet18", {"weights": "random", "seed": "x"}, "whole number"),
    ],
)
def test_a_wrong_setting_is_refused(name, params, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(component(name, **params))


def test_pooling_that_a_model_cannot_do_is_refused():
    for pooling in ("cls", "mean"):
        with pytest.raises(EncoderError, match="pooling=default"):
            encoder_info(component("timm:resnet18", pooling=pooling))
    with pytest.raises(EncoderError, match="no 'layer3'"):
        encoder_info(component(f"timm:{VIT}", pooling="layer3"))


def test_a_row_of_another_width_than_the_model_is_noticed(tiles):
    encoder = TimmEncoder(replace(CATALOG["resnet50"], dim=2048), Weights("random"))
    with pytest.raises(EncoderError, match="correct the row"):
        encoder.embed(tiles)


def test_catalog_rows_are_listed_without_torch():
    code = (
        "import sys; from wsi.encoders import encoder_info; from wsi.specs import Component;"
        "encoder_info(Component(name='resnet50')); print([m for m in ('torch', 'timm') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
