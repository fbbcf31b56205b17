"""From the setting to a stain normalisation, and fitting it to tissue pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from wsi.errors import ConfigError, StainFitError, UnknownNameError
from wsi.specs import Component
from wsi.stain import STAINS, plan_stain, stained

each_method = pytest.mark.parametrize("name", ["macenko", "reinhard"])


def component(name: str, **params: object) -> Component:
    return Component.model_validate({"name": name, **params})


@pytest.fixture
def target(tmp_path: Path, stained_picture: Callable[..., np.ndarray]) -> Path:
    path = tmp_path / "target.png"
    Image.fromarray(stained_picture((256, 256), ((0.8, 0.6, 0.2), (0.3, 0.9, 0.3)))).save(path)
    return path


def test_glass_is_not_stained() -> None:
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    density = -np.log((np.arange(256) + 1) / 240)
    np.testing.assert_array_equal(stained(grey)[:, 0], np.flatnonzero(density >= 0.05))


@each_method
def test_all_settings_are_recorded_also_those_not_given(name: str) -> None:
    settings = plan_stain(component(name)).settings
    assert set(settings) == {"name", *STAINS.settings(name)}
    assert (settings["name"], settings["target"]) == (name, None)


def test_settings_given_are_recorded() -> None:
    settings = plan_stain(component("macenko", alpha=2, beta=0.1)).settings
    assert settings == {"name": "macenko", "target": None, "alpha": 2.0, "beta": 0.1}


@each_method
def test_a_target_picture_is_recorded_by_its_hash(name: str, target: Path, tmp_path: Path) -> None:
    plan = plan_stain(component(name, target=str(target)))
    assert plan.settings["target"] == hashlib.sha256(target.read_bytes()).hexdigest()
    elsewhere = target.rename(tmp_path / "other.png")
    moved = plan_stain(component(name, target=str(elsewhere)))
    assert (moved.settings, moved.target) == (plan.settings, plan.target)
    assert plan.target != plan_stain(component(name)).target


@pytest.mark.parametrize("params", [{"name": "macenko", "beta": 0.03}, {"name": "reinhard"}])
def test_tissue_gets_the_look_of_the_target(
    params, target: Path, stained_picture: Callable[..., np.ndarray]
) -> None:
    plan = plan_stain(component(**params, target=str(target)))
    tile = stained_picture((256, 256), ((0.65, 0.70, 0.29), (0.20, 0.95, 0.24)), seed=5)
    normaliser, found = plan.fit(tile.reshape(-1, 3))
    became = stained(normaliser.apply(tile[None])[0].reshape(-1, 3)).astype(float)
    aim = stained(np.asarray(Image.open(target)).reshape(-1, 3)).astype(float)
    before = stained(tile.reshape(-1, 3)).astype(float)
    assert found["pixels"] == len(before)
    assert np.abs(before.mean(axis=0) - aim.mean(axis=0)).max() > 12
    np.testing.assert_allclose(became.mean(axis=0), aim.mean(axis=0), atol=4)


def test_a_target_is_converted_to_srgb_where_slides_are(
    target: Path, tmp_path: Path, stained_picture: Callable[..., np.ndarray]
) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(lab)  # red and blue colorants change places
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    path = tmp_path / "swapped.png"
    Image.fromarray(np.asarray(Image.open(target))[..., ::-1]).save(
        path, icc_profile=bytes(swapped)
    )
    plain = plan_stain(component("reinhard", target=str(target))).target
    converted = plan_stain(component("reinhard", target=str(path)), srgb=True).target
    np.testing.assert_allclose(converted.mean, plain.mean, atol=0.7)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("params", "error", "told"),
    [
        ({"name": "macenco"}, UnknownNameError, "did you mean 'macenko'"),
        ({"name": "macenko", "alpah": 1}, ConfigError, "did you mean 'alpha'"),
        ({"name": "macenko", "alpha": "much"}, ConfigError, "alpha='much'"),
        ({"name": "reinhard", "alpha": 1}, ConfigError, "has no setting 'alpha'"),
        ({"name": "reinhard", "target": "none.png"}, ConfigError, "none.png: no such file"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(params, error, told) -> None:
    with pytest.raises(error, match=told):
        plan_stain(Component.model_validate(params))


def test_a_target_without_tissue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "glass.png"
    Image.fromarray(np.full((200, 200, 3), 243, np.uint8)).save(path)
    with pytest.raises(ConfigError, match=r"target=glass\.png: only 0 stained.*well stained"):
        plan_stain(component("macenko", target=str(path)))


def test_a_whole_slide_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi.stain.plan._TARGET_MAX_PX", 100)
    path = tmp_path / "large.png"
    Image.fromarray(np.full((20, 20, 3), 243, np.uint8)).save(path)
    with pytest.raises(ConfigError, match=r"large\.png is 20x20 px — give a region"):
        plan_stain(component("macenko", target=str(path)))


@each_method
def test_glass_alone_cannot_be_fitted(name: str) -> None:
    with pytest.raises(StainFitError):
        plan_stain(component(name)).fit(np.full((10_000, 3), 242, np.uint8))
