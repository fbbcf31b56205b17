"""Tissue by a network: against networks whose answer is known, and against running them whole."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsi.errors import ConfigError, UnknownNameError
from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.specs import Component, TissueSpec
from wsi.tissue import METHODS, find_tissue, recipe_of, segmenter

NETWORK = "torch:lraspp_mobilenet_v3_large"
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def method(name: str, weights: Path, **settings: object):
    params = METHODS.check(name, {"weights": weights, **settings})
    return lambda pixels, valid: METHODS.load(name)(pixels, valid, **params).mask


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(h, w, 3)), (0, 0), 6)
    return np.clip(128 + 900 * noise, 0, 255).astype(np.uint8)


class RedAbove(nn.Module):
    """Class 1 where red, blurred over 5 x 5 pixels, is above 0.4: known by arithmetic."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 5, padding=2)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        with torch.no_grad():
            self.conv.weight[classes - 1, 0] = 1 / 25
            self.conv.bias[classes - 1] = -0.4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Weights of a network whose answer is known, built in place of torchvision's."""
    monkeypatch.setattr(segmenter, "_built", lambda n, e, classes, s: RedAbove(classes))
    segmenter._loaded.cache_clear()
    yield _saved(RedAbove(2), tmp_path / "known.safetensors")
    segmenter._loaded.cache_clear()


def _saved(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize(("tile_px", "margin_px"), [(32, 32), (96, 32), (512, 128)])
def test_a_known_network_gives_its_known_mask_for_any_tiling(
    known: Path, tile_px: int, margin_px: int
) -> None:
    pixels = picture(150, 205)
    run = method(NETWORK, known, tile_px=tile_px, margin_px=margin_px, **PLAIN)
    red = cv2.blur(pixels[..., 0].astype(np.float64), (5, 5), borderType=cv2.BORDER_REFLECT_101)
    expected = red / 255 > 0.4
    assert 0.05 < expected.mean() < 0.95
    away = np.abs(red / 255 - 0.4) > 1e-5  # within rounding of the threshold both are right
    np.testing.assert_array_equal(run(pixels, np.ones((150, 205), bool))[away], expected[away])


def test_the_threshold_and_the_channel_are_the_ones_given(known: Path) -> None:
    pixels, valid = picture(64, 64), np.ones((64, 64), bool)
    red = cv2.blur(pixels[..., 0].astype(np.float64), (5, 5), borderType=cv2.BORDER_REFLECT_101)
    # Two logits, 0 and z: p(1) = 1 / (1 + exp(-z)) is above 0.55 where z is above log(0.55/0.45).
    limit = 0.4 + np.log(0.55 / 0.45)
    higher = method(NETWORK, known, threshold=0.55, **PLAIN)(pixels, valid)
    np.testing.assert_array_equal(higher, red / 255 > limit)
    other = method(NETWORK, known, tissue=0, **PLAIN)(pixels, valid)
    np.testing.assert_array_equal(other, red / 255 < 0.4)


def test_one_channel_is_a_probability_by_itself(known: Path, tmp_path: Path) -> None:
    single = _saved(RedAbove(1), tmp_path / "single.safetensors")
    pixels, valid = picture(64, 64, 3), np.ones((64, 64), bool)
    red = cv2.blur(pixels[..., 0].astype(np.float64), (5, 5), borderType=cv2.BORDER_REFLECT_101)
    mask = method(NETWORK, single, classes=1, **PLAIN)(pixels, valid)
    np.testing.assert_array_equal(mask, red / 255 > 0.4)


def test_pixels_without_data_are_no_tissue(known: Path) -> None:
    valid = np.ones((64, 96), bool)
    valid[:, :40] = False
    mask = method(NETWORK, known, tile_px=32, margin_px=0, **PLAIN)(picture(64, 96), valid)
    assert not mask[:, :40].any()
    assert mask[:, 40:].any()


@pytest.mark.parametrize("corner", [(0, 0), (32, 0), (64, 32)])
def test_a_window_beyond_the_picture_is_mirrored_as_often_as_it_takes(
    corner: tuple[int, int],
) -> None:
    pixels = picture(41, 70)
    window = segmenter._window(pixels, corner, 96, 32)
    padded = np.pad(pixels, ((32, 200), (32, 200), (0, 0)), mode="reflect")
    x, y = corner
    np.testing.assert_array_equal(window, padded[y : y + 160, x : x + 160])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (31, 97)])
def test_the_smallest_pictures_have_a_mask_of_their_own_size(
    known: Path, size: tuple[int, int]
) -> None:
    red = np.full((*size, 3), 255, np.uint8)
    assert method(NETWORK, known, **PLAIN)(red, np.ones(size, bool)).all()


@pytest.fixture(scope="module")
def lraspp(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=2
    ).eval()
    return model, _saved(model, tmp_path_factory.mktemp("weights") / "lraspp.safetensors")


def by_hand(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Return p(tissue) of the whole picture, mirrored by numpy to 256 x 256."""
    h, w = pixels.shape[:2]
    padded = np.pad(pixels, ((32, 224 - h), (32, 224 - w), (0, 0)), mode="reflect")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None] / 255
    x = (x - IMAGENET[0][:, None, None]) / IMAGENET[1][:, None, None]
    with torch.inference_mode():
        output = model(x)
    logits = output["out"] if isinstance(output, dict) else output
    return logits.softmax(1)[0, 1, 32 : 32 + h, 32 : 32 + w].numpy()


def agrees(model: nn.Module, name: str, path: Path, **settings: object) -> None:
    pixels = picture(96, 160, 2)
    expected = by_hand(model, pixels)
    middle = float(np.median(expected))
    run = method(name, path, tile_px=192, margin_px=32, threshold=middle, **settings)
    mask = run(pixels, np.ones((96, 160), bool))
    away = np.abs(expected - middle) > 1e-5
    np.testing.assert_array_equal(mask[away], (expected > middle)[away])
    assert 0.3 < mask.mean() < 0.7


def test_a_torchvision_network_gives_what_it_gives_by_hand(lraspp) -> None:
    agrees(lraspp[0], NETWORK, lraspp[1])


def test_an_auxiliary_head_in_the_weights_is_no_obstacle(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(1)
    model = get_model(
        "deeplabv3_mobilenet_v3_large",
        weights=None,
        weights_backbone=None,
        num_classes=2,
        aux_loss=True,
    ).eval()
    with torch.no_grad():
        model.classifier[-1].weight.mul_(1e4)  # as initialised it tells all pixels the same
    path = _saved(model, tmp_path / "aux.safetensors")
    agrees(model, "torch:deeplabv3_mobilenet_v3_large", path)


@pytest.mark.slow
def test_a_network_of_segmentation_models_pytorch_gives_what_it_gives_by_hand(
    tmp_path: Path,
) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="an optional extra")
    torch.manual_seed(2)
    model = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    path = _saved(model, tmp_path / "unet.safetensors")
    agrees(model, "torch:smp/Unet", path, encoder="resnet18")
    with pytest.raises(ConfigError, match=r"unknown encoder 'resnet81'.*did you mean 'resnet"):
        agrees(model, "torch:smp/Unet", path, encoder="resnet81")
    with pytest.raises(UnknownNameError, match="did you mean 'UnetPlusPlus'"):
        METHODS.check("torch:smp/UnetPlusPlsu", {"weights": path})


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match="pip install segmentation-models-pytorch"):
        METHODS.check("torch:smp/Unet", {"weights": tmp_path / "x.safetensors"})


def test_a_misspelt_network_is_told_the_nearest(lraspp) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fcn_resnet50'"):
        METHODS.check("torch:fcn_resnet5", {"weights": lraspp[1]})


def test_weights_that_do_not_fit_are_refused_by_their_first_keys(lraspp, tmp_path: Path) -> None:
    pixels, valid = picture(40, 40), np.ones((40, 40), bool)
    with pytest.raises(ConfigError, match=r"does not fit.*classifier\.low_classifier\.weight \(2,"):
        method(NETWORK, lraspp[1], classes=3)(pixels, valid)
    some = {k: v for k, v in lraspp[0].state_dict().items() if "high_classifier" not in k}
    lacking = tmp_path / "lacking.safetensors"
    save_file({**some, "extra": torch.zeros(1)}, lacking)
    with pytest.raises(ConfigError) as caught:
        method(NETWORK, lacking)(pixels, valid)
    message = str(caught.value)
    assert "misses classifier.high_classifier.weight, classifier.high_classifier.bias" in message
    assert "has unknown extra" in message
    assert "\n" not in message


def test_only_safetensors_files_are_read(tmp_path: Path) -> None:
    pickled = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, pickled)
    for path, reason in ((pickled, r"no \.safetensors"), (tmp_path / "n.safetensors", "no such")):
        with pytest.raises(ConfigError, match=reason):
            METHODS.check(NETWORK, {"weights": path})
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(pickled.read_bytes())
    with pytest.raises(ConfigError, match=r"damaged\.safetensors is damaged"):
        method(NETWORK, damaged)(picture(40, 40), np.ones((40, 40), bool))


def test_a_channel_beyond_the_classes_is_refused(lraspp) -> None:
    with pytest.raises(ConfigError, match="channels count from 0"):
        method(NETWORK, lraspp[1], tissue=2)(picture(40, 40), np.ones((40, 40), bool))


def test_the_recipe_knows_the_weights_by_content_and_not_by_path(tmp_path: Path) -> None:
    def recipe(name: str, value: float) -> dict:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"a": torch.full((3,), value)}, tmp_path / name)
        named = Component(name=NETWORK, weights=str(tmp_path / name))  # pyright: ignore[reportCallIssue]
        return recipe_of(TissueSpec(method=named))

    first = recipe("a.safetensors", 1.0)
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert first["method"] == {"name": NETWORK, "weights": digest}
    assert recipe("elsewhere/b.safetensors", 1.0) == first
    assert recipe("a.safetensors", 2.0) != first
    assert recipe_of(TissueSpec()) == TissueSpec().model_dump(mode="json")


def test_a_network_finds_the_tissue_of_a_slide(known: Path, tmp_path: Path) -> None:
    pixels = np.full((800, 800, 3), 60, np.uint8)
    pixels[200:600, 240:560] = (200, 60, 60)
    write_slide(tmp_path / "s.tif", [pixels], mpp=2.0, lossless=True)
    named = {"name": NETWORK, "weights": str(known), **PLAIN}
    with open_slide(tmp_path / "s.tif") as slide:
        mask, _ = find_tissue(slide, TissueSpec.model_validate({"method": named}))
    red = cv2.blur(pixels[2::4, 2::4, 0].astype(float), (5, 5))
    truth = red / 255 > 0.4
    assert (mask.mask & truth).sum() / (mask.mask | truth).sum() > 0.97
    assert mask.method == NETWORK
