"""`wsi preprocess` with the colour steps on: pictures, counts, states, recipes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from pipelines.cli import run_command
from wsi.bags import check_uniform, open_store
from wsi.errors import BagMismatchError
from wsi.slides.dress import write_slide

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
STAINS = ((0.65, 0.70, 0.29), (0.20, 0.95, 0.24))


def preprocess(slides: Path, out: Path, *words: object) -> int:
    return run_command(
        ["preprocess", *SETTINGS, "--slides", str(slides), "--out", str(out), *map(str, words)]
    )


def write_with_profile(path: Path, pixels: np.ndarray, profile: bytes) -> None:
    settings = {"photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": 3}
    tifffile.imwrite(path, pixels, tile=(256, 256), iccprofile=profile, **settings)


@pytest.fixture(scope="module")
def slides(
    tmp_path_factory: pytest.TempPathFactory, stained_picture: Callable[..., np.ndarray]
) -> Path:
    """Two slides of two stains; one of one colour; one with a damaged profile; bare glass."""
    folder = tmp_path_factory.mktemp("coloured")
    for seed, name in enumerate(["pink.tif", "violet.tif"]):
        pixels = stained_picture((512, 512), STAINS, seed)
        write_slide(folder / name, [pixels], mpp=0.5, lossless=True)
    write_with_profile(folder / "damaged.tif", stained_picture((512, 512), STAINS, 2), b"x" * 300)
    flat = stained_picture((512, 512), STAINS)
    flat[flat.max(axis=2) < 240] = (150, 80, 140)
    write_slide(folder / "flat.tif", [flat], mpp=0.5, lossless=True)
    write_slide(folder / "glass.tif", [np.full((300, 300, 3), 244, np.uint8)], mpp=0.5)
    return folder


@pytest.fixture(scope="module")
def finished(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert preprocess(slides, out, "pixels.srgb=true", "pixels.stain=macenko") == 3
    return out


def quarantined(out: Path) -> dict[str, dict[str, str]]:
    with (out / "quarantine.csv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def test_a_slide_that_cannot_be_fitted_is_quarantined_by_name(finished: Path) -> None:
    (row,) = quarantined(finished).values()
    assert (row["slide_id"], row["reason"]) == ("flat", "stain-fit-failed")
    assert "two stains" in row["message"]
    assert " — " in row["message"]


def test_what_was_fitted_stands_in_the_sidecar_and_outside_the_key(finished: Path) -> None:
    made = {info.slide_id: info.provenance for info in open_store(finished / "bags").infos()}
    assert set(made) == {"pink", "violet", "damaged", "glass"}
    assert {i: p.pixels["fitted"]["colour"] for i, p in made.items()} == {
        "pink": "no-profile",
        "violet": "no-profile",
        "damaged": "damaged-profile",
        "glass": "no-profile",
    }
    pink, violet = made["pink"].pixels["fitted"], made["violet"].pixels["fitted"]
    assert pink["stain"]["vectors"] != violet["stain"]["vectors"]
    assert made["pink"].recipe_key == made["violet"].recipe_key == made["glass"].recipe_key
    assert made["damaged"].slide["icc"] == "unreadable"
    assert len(made["damaged"].slide["icc_sha256"]) == 64


def test_features_are_those_of_the_normalised_tiles(finished: Path, slides: Path) -> None:
    import torch

    from wsi.encoders import load_encoder
    from wsi.slides import open_slide
    from wsi.specs import Component
    from wsi.stain.macenko import Macenko, Stains

    bag = open_store(finished / "bags").read("pink")
    fitted = bag.provenance.pixels["fitted"]["stain"]
    vectors = tuple(tuple(v) for v in fitted["vectors"])
    method = Macenko()
    source = Stains(vectors, tuple(fitted["strengths"]))  # pyright: ignore[reportArgumentType]
    with open_slide(slides / "pink.tif") as slide:
        tile = slide.read_at(tuple(bag.xy0[5]), (64, 64), 1.0)  # pyright: ignore[reportArgumentType]
    normalised = method.normaliser(source, method.REFERENCE).apply(tile[None])
    encoder = load_encoder(Component(name="texture-v1"))
    expected = encoder.embed(torch.from_numpy(normalised)).numpy()[0]
    plain = encoder.embed(torch.from_numpy(tile[None])).numpy()[0]
    np.testing.assert_allclose(bag.features[5], expected, rtol=2e-3, atol=2e-3)
    assert np.abs(plain - expected).max() > 0.02


def test_the_run_counts_what_was_left_as_scanned_also_when_done_before(
    slides: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pixels.srgb=true", "pixels.stain=macenko", "--json")
    assert preprocess(slides, finished, *words) == 3
    told = capsys.readouterr()
    assert "left as scanned: 1 damaged-profile, 3 no-profile" in told.err
    assert json.loads(told.out)["colour"] == {"damaged-profile": 1, "no-profile": 3}


def test_a_damaged_profile_is_said_with_the_slides_name(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--until", "tiles", "pixels.srgb=true")
    assert preprocess(slides / "damaged.tif", tmp_path / "out", *words) == 0
    assert "damaged: damaged-profile: its tiles are left as scanned — " in capsys.readouterr().err


def test_pictures_show_tiles_before_and_after(slides: Path, finished: Path, tmp_path: Path) -> None:
    names = {path.name for path in (finished / "thumbnails").glob("*.colour.jpg")}
    assert names == {"pink.colour.jpg", "violet.colour.jpg", "damaged.colour.jpg"}
    picture = cv2.imread(str(finished / "thumbnails" / "pink.colour.jpg"))
    assert picture is not None
    above, below = picture[: picture.shape[0] // 2], picture[picture.shape[0] // 2 :]
    assert above.shape == below.shape
    # Stained pixels change, the white around the tiles does not.
    stained = above.mean(axis=2) < 200
    assert stained.mean() > 0.3
    assert np.abs(above.astype(int) - below)[stained].mean() > 10
    out = tmp_path / "tiles"
    assert preprocess(slides / "pink.tif", out, "--until", "tiles", "pixels.stain=reinhard") == 0
    assert {p.name for p in (out / "thumbnails").glob("*.jpg")} == {"pink.jpg", "pink.colour.jpg"}
    assert preprocess(slides / "pink.tif", tmp_path / "plain", "--until", "tiles") == 0
    assert {p.name for p in (tmp_path / "plain" / "thumbnails").glob("*.jpg")} == {"pink.jpg"}


def test_other_colour_steps_are_refused_by_name_until_redo(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert preprocess(slides / "pink.tif", out) == 0
    assert preprocess(slides / "pink.tif", out, "pixels.stain=reinhard") == 2
    err = capsys.readouterr().err
    assert "pixels.stain None -> {'name': 'reinhard'" in err
    assert "--redo" in err
    assert preprocess(slides / "pink.tif", out, "pixels.stain=reinhard", "--redo") == 0
    assert preprocess(slides / "pink.tif", out) == 2
    assert "pixels.stain {'name': 'reinhard'" in capsys.readouterr().err


def test_bags_of_other_colour_steps_may_not_stand_together(
    slides: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    assert preprocess(slides / "pink.tif", out) == 0
    infos = [*open_store(finished / "bags").infos(), *open_store(out / "bags").infos()]
    with pytest.raises(BagMismatchError, match=r"pixels\.stain=\{'name': 'macenko'"):
        check_uniform(infos)


@pytest.mark.slow  # two processes import torch
def test_two_processes_make_the_bags_of_one(slides: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    words = ("pixels.srgb=true", "pixels.stain=macenko", "--jobs", 2)
    assert preprocess(slides, out, *words) == 3
    one, two = open_store(finished / "bags"), open_store(out / "bags")
    assert one.ids() == two.ids() == ["damaged", "pink", "violet"]
    for slide_id in one.ids():
        assert one.info(slide_id).provenance == two.info(slide_id).provenance
        np.testing.assert_allclose(
            one.read(slide_id).features, two.read(slide_id).features, rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pixels.stain=macenco"], "did you mean 'macenko'"),
        (["pixels.stain=macenko", "pixels.stain.alpah=2"], "did you mean 'alpha'"),
        (["pixels.stain.alpha=2"], "give a name"),
        (["pixels.stain={name: reinhard, target: none.png}"], "none.png: no such file"),
    ],
)
def test_a_wrong_setting_is_said_before_any_slide_is_opened(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words, told
) -> None:
    assert preprocess(slides, tmp_path / "out", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
