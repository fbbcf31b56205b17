"""Colour profiles: what slides say of theirs, and pixels in sRGB against the formula by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from wsi.files import sha256_bytes
from wsi.slides import open_slide
from wsi.slides.profile import ToSrgb, profile_name

# Colorants adapted to D50, as the profiles of both spaces state them.
SRGB = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
SWAPPED = SRGB[:, [1, 2, 0]]
D50 = (0.9642, 1.0, 0.8249)


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(tags: dict[bytes, bytes], space: bytes = b"RGB ") -> bytes:
    """Return an ICC profile, version 2.1, of these tags, written by hand."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", 0, b"test", 0x02100000, b"scnr", space, b"XYZ ")
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + s15(*D50)
    header = header.ljust(128, b"\0")
    whole = header + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def described(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def matrix_profile(
    colorants: np.ndarray,
    gamma: float,
    name: str = "by hand",
    white: tuple[float, float, float] = D50,
) -> bytes:
    xyz = {tag: b"XYZ " + bytes(4) + s15(*column) for tag, column in zip("rgb", colorants.T)}
    tags = {b"desc": described(name), b"wtpt": b"XYZ " + bytes(4) + s15(*white)}
    tags |= {tag.encode() + b"XYZ": data for tag, data in xyz.items()}
    tags |= {tag.encode() + b"TRC": curve(gamma) for tag in "rgb"}
    return icc(tags)


def in_srgb(pixels: np.ndarray, colorants: np.ndarray, gamma: float) -> np.ndarray:
    """Return sRGB levels, as floats, of pixels in the space of a matrix profile."""
    xyz = (pixels / 255) ** gamma @ colorants.T
    light = np.clip(xyz @ np.linalg.inv(SRGB).T, 0, 1)
    low = light <= 0.0031308
    return 255 * np.where(low, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def noise(seed: int = 0, size: tuple[int, int] = (300, 400)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, profile: bytes | None) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", iccprofile=profile)
    elif path.suffix == ".tiff":
        settings = {"compression": "jpeg", "compressionargs": {"level": 100}}
        ycbcr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
        shape = {"tile": (256, 256), "photometric": "ycbcr", "subsampling": (1, 1)}
        tifffile.imwrite(path, ycbcr, **shape, **settings, iccprofile=profile)
    else:
        Image.fromarray(pixels).save(path, icc_profile=profile)
    return path


each_file = pytest.mark.parametrize("suffix", [".tif", ".png"])  # by OpenSlide, as an image


@each_file
@pytest.mark.parametrize(
    ("colorants", "gamma"),
    [(ADOBE, 563 / 256), (SWAPPED, 563 / 256), (SRGB, 1.0)],
    ids=["adobe", "swapped", "linear"],
)
def test_pixels_in_srgb_are_those_of_the_formula(tmp_path, suffix, colorants, gamma) -> None:
    pixels = noise()
    profile = matrix_profile(colorants, gamma)
    with open_slide(write(tmp_path / f"a{suffix}", pixels, profile)) as slide:
        to_srgb = ToSrgb(slide.icc_profile)
        converted = to_srgb.apply(slide.read((0, 0), 0, (400, 300)))
    assert to_srgb.state == "converted"
    assert np.abs(converted - in_srgb(pixels, colorants, gamma)).max() <= 2
    assert np.abs(converted.astype(int) - pixels).max() > 20  # it was no identity


@pytest.mark.parametrize(
    ("suffix", "reader"), [(".tif", "openslide"), (".tiff", "tiff"), (".png", "image")]
)
def test_a_slide_names_its_profile_and_gives_its_bytes(tmp_path, suffix, reader) -> None:
    profile = matrix_profile(ADOBE, 2.2, "scanner of room 7")
    with open_slide(write(tmp_path / f"a{suffix}", noise(), profile)) as slide:
        assert slide.info.reader == reader
        assert slide.icc_profile == profile
        assert (slide.info.icc, slide.info.icc_sha256) == (
            "scanner of room 7",
            sha256_bytes(profile),
        )


@each_file
def test_a_slide_without_a_profile_is_left_as_it_is(tmp_path, suffix) -> None:
    with open_slide(write(tmp_path / f"a{suffix}", noise(), None)) as slide:
        assert (slide.icc_profile, slide.info.icc, slide.info.icc_sha256) == (None, None, None)
    to_srgb, tiles = ToSrgb(None), noise()[None]
    assert to_srgb.state == "no-profile"
    np.testing.assert_array_equal(to_srgb.apply(tiles), tiles)


def test_srgb_stays_srgb() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tiles = noise()[None]
    to_srgb = ToSrgb(profile)
    assert to_srgb.state == "converted"
    assert np.abs(to_srgb.apply(tiles).astype(int) - tiles).max() <= 1


def test_white_and_black_stay(tmp_path) -> None:
    ends = np.zeros((1, 2, 2, 3), np.uint8)
    ends[:, 0] = 255
    np.testing.assert_allclose(ToSrgb(matrix_profile(ADOBE, 2.2)).apply(ends), ends, atol=1)


def test_glass_is_white_whatever_the_scanners_light() -> None:
    pixels = noise()[None]
    yellow = matrix_profile(ADOBE, 563 / 256, white=(0.95, 1.0, 0.6))
    converted = ToSrgb(yellow).apply(pixels)
    assert np.abs(converted - in_srgb(pixels, ADOBE, 563 / 256)).max() <= 2
    assert (ToSrgb(yellow).apply(np.full((1, 2, 2, 3), 255, np.uint8)) >= 254).all()


def cut() -> bytes:
    return matrix_profile(ADOBE, 2.2)[:200]


def scrambled() -> bytes:
    sound = matrix_profile(ADOBE, 2.2)
    return sound[:128] + np.random.default_rng(0).bytes(len(sound) - 128)


@each_file
@pytest.mark.parametrize("damage", [cut, scrambled, lambda: b"no profile at all"])
def test_a_damaged_profile_is_a_named_state(tmp_path, suffix, damage) -> None:
    pixels = noise()
    with open_slide(write(tmp_path / f"a{suffix}", pixels, damage())) as slide:
        assert slide.info.icc == "unreadable"
        to_srgb = ToSrgb(slide.icc_profile)
        read = slide.read((0, 0), 0, (400, 300))
    assert to_srgb.state == "damaged-profile"
    np.testing.assert_array_equal(to_srgb.apply(read), pixels)


def test_a_profile_of_something_else_than_rgb_is_not_applied() -> None:
    grey = icc(
        {
            b"desc": described("grey"),
            b"wtpt": b"XYZ " + bytes(4) + s15(*D50),
            b"kTRC": curve(2.2),
        },
        b"GRAY",
    )
    assert profile_name(grey) == "grey"
    to_srgb, tiles = ToSrgb(grey), noise()[None]
    assert to_srgb.state == "not-an-rgb-profile"
    np.testing.assert_array_equal(to_srgb.apply(tiles), tiles)


def test_any_number_of_tiles_at_once_gives_the_same() -> None:
    tiles = noise(size=(12 * 16, 16)).reshape(12, 16, 16, 3)
    to_srgb = ToSrgb(matrix_profile(ADOBE, 2.2))
    whole = to_srgb.apply(tiles)
    for k in range(12):
        np.testing.assert_array_equal(to_srgb.apply(tiles[k : k + 1])[0], whole[k])
        np.testing.assert_array_equal(to_srgb.apply(tiles[k]), whole[k])
    assert to_srgb.apply(tiles[:0]).shape == (0, 16, 16, 3)
    assert whole.flags.writeable


def test_a_real_scanner_profile(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs") as slide:
        assert slide.info.icc == "sRGB IEC61966-2.1"
        tile = slide.read((1500, 1500), 0, (256, 256))
        to_srgb = ToSrgb(slide.icc_profile)
    assert to_srgb.state == "converted"
    assert np.abs(to_srgb.apply(tile).astype(int) - tile).max() <= 1
