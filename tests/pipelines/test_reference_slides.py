"""Real and reference slides: what is known of each, against what we say. Skips without them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import openslide
import pytest

from pipelines.cli import run_command
from wsi.bags import open_store
from wsi.errors import RegionError, SlideError
from wsi.slides import open_slide
from wsi.specs import TissueSpec
from wsi.tissue import find_tissue

# slide_id: vendor, width, height, levels, mpp, status, as the manifest of the data states them
FACTS = {
    "CMU-1-Small-Region": ("aperio", 2220, 2967, 1, 0.499, "ok"),
    "TCGA-CR-7395-01A-01-TS1": ("aperio", 4443, 3567, 2, None, "no-mpp"),
    "diag_packer_example": ("generic-tiff", 1472, 690, 3, 0.987, "ok"),
    "google_camelyon_jpeg": ("dicom", 1152, 700, 1, None, "implausible-mpp"),
    "google_camelyon_jp2k": ("dicom", 1696, 812, 1, None, "implausible-mpp"),
    "kidney-48-5": ("image", 1493, 901, 1, None, "no-mpp"),
    "aperio_40x_mpp0p2522": ("aperio", 2048, 2048, 4, 0.2522, "ok"),
    "aperio_nompp": ("aperio", 2048, 2048, 4, None, "no-mpp"),
    "aperio_nomag": ("aperio", 2048, 2048, 4, None, "no-mpp"),
    "generic_mpp0p5": ("generic-tiff", 2048, 2048, 4, 0.5, "ok"),
    "generic_nores": ("generic-tiff", 2048, 2048, 4, None, "no-mpp"),
    "generic_72dpi": ("generic-tiff", 2048, 2048, 4, None, "no-mpp"),
    "philips_like_camelyon": ("philips", 2048, 2048, 4, 0.2275, "ok"),
    "leica": ("leica", 2000, 2000, 4, 0.5, "ok"),
    "trestle": ("trestle", 2048, 2048, 4, None, "no-mpp"),
    "ome_pyramid.ome": ("generic-tiff", 2048, 2048, 4, 0.5, "ok"),
}


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def test_scan_states_the_known_facts(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    words = ["scan", str(shared_data / "slides"), str(shared_data / "synth"), "--out", str(out)]
    assert run_command(words) == 3
    found = table(out)
    assert set(found) == set(FACTS)
    for slide_id, (vendor, width, height, levels, mpp, status) in FACTS.items():
        row = found[slide_id]
        assert (row["vendor"], int(row["levels"]), row["status"]) == (vendor, levels, status)
        assert (int(row["width"]), int(row["height"])) == (width, height)
        assert (float(row["mpp"]) if row["mpp"] else None) == (
            pytest.approx(mpp, abs=5e-4) if mpp else None
        )
    assert found["ome_pyramid.ome"]["mpp_source"] == "ome-xml"
    assert float(found["aperio_40x_mpp0p2522"]["magnification"]) == 40
    assert found["ome_pyramid.ome"]["reader"] == "tiff"  # OpenSlide sees one level only
    assert found["CMU-1-Small-Region"]["associated"] == "label;macro;thumbnail"
    assert found["TCGA-CR-7395-01A-01-TS1"]["icc"] == "sRGB IEC61966-2.1"


def test_preprocess_takes_what_can_be_taken(shared_data: Path, tmp_path: Path) -> None:
    words = ["preprocess", "tiling.mpp=1.0", "tiling.tile_px=224", "--out", str(tmp_path)]
    assert run_command([*words, "--slides", str(shared_data / "slides")]) == 3
    reasons = {k: row["reason"] for k, row in table(tmp_path / "quarantine.csv").items()}
    slides = (
        "CMU-1-Small-Region",
        "TCGA-CR-7395-01A-01-TS1",
        "diag_packer_example",
        "google_camelyon_jpeg",
        "google_camelyon_jp2k",
        "kidney-48-5",
    )
    assert reasons == {i: FACTS[i][5] for i in slides if FACTS[i][5] != "ok"}
    infos = {info.slide_id: info for info in open_store(tmp_path / "bags").infos()}
    assert set(infos) == {"CMU-1-Small-Region", "diag_packer_example"}
    # 2220 x 2967 px at 0.499 um/px holds 4 x 6 whole tiles of 448.9 px.
    assert infos["CMU-1-Small-Region"].counts["considered"] == 24
    assert all(info.n > 0 for info in infos.values())


def test_slides_of_every_vendor_show_the_same_tissue(shared_data: Path) -> None:
    """One region was written in many dresses; all read the same through OpenSlide itself."""
    for path in sorted((shared_data / "synth").iterdir()):
        with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
            for level in range(theirs.level_count):
                d = theirs.level_downsamples[level]
                xy = round(512 * d), round(256 * d)
                size = (200, 100) if level < 2 else (40, 40)
                xy = xy if level < 2 else (0, 0)
                expected = np.asarray(theirs.read_region(xy, level, size))
                opaque = expected[..., 3] == 255
                read = ours.read(xy, level, size)
                np.testing.assert_array_equal(read[opaque], expected[opaque][:, :3])


def test_two_biopsies_on_white_are_found(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "diag_packer_example.tif") as slide:
        mask, _ = find_tissue(slide, TissueSpec())
    parts = sorted(mask.outlines().geoms, key=lambda part: -part.area)
    assert len(parts) >= 2
    assert parts[1].area > 5 * (parts[2].area if len(parts) > 2 else 0)
    assert 0.1 < mask.mask.mean() < 0.3


@pytest.mark.parametrize(
    ("name", "pen"),
    [
        ("tcga-green-pen", True),
        ("tcga-red-pen", True),
        ("wsi-blue-pen", True),
        ("diagnostic-slide-thumb-rgb", True),
        ("tcga-lung-rgba", False),
    ],
)
def test_real_pen_is_seen_and_real_tissue_is_no_pen(
    shared_data: Path, name: str, pen: bool
) -> None:
    with open_slide(shared_data / "thumbs" / f"{name}.png") as slide:
        mask, thumbnail = find_tissue(slide, TissueSpec())
    assert ("pen" in mask.flags) == pen
    red, green, blue = (thumbnail.pixels[..., k].astype(int) for k in range(3))
    foreign = (green > red + 25) | (blue > red + 60) | ((red > 150) & (green < 30) & (blue < 40))
    if foreign.sum() > 100:
        assert mask.mask[foreign].mean() < 0.1


def test_one_corrupt_tile_of_sixteen_costs_one(shared_data: Path) -> None:
    good, bad = 0, []
    with open_slide(shared_data / "edge" / "bad" / "aperio_one_tile_corrupt.svs") as slide:
        for y in range(0, 2048, 512):
            for x in range(0, 2048, 512):
                try:
                    tile = slide.read_at((x, y), (512, 512), 0.2522)
                except RegionError as error:
                    bad.append(str(error))
                else:
                    assert tile.shape == (512, 512, 3)
                    good += 1
    assert (good, len(bad)) == (15, 1)
    assert "aperio_one_tile_corrupt.svs" in bad[0]


def test_no_odd_file_breaks_more_than_itself(shared_data: Path, tmp_path: Path) -> None:
    files = [p for p in sorted((shared_data / "edge").rglob("*")) if p.is_file()]
    refused = {}
    for path in files:
        try:
            with open_slide(path, mpp=0.5) as slide:
                slide.read((0, 0), 0, (8, 8))
        except SlideError as error:
            refused[path.name] = str(error)
    assert {
        "zero_byte.svs",
        "histolab_broken.svs",
        "unopenable.tiff",
        "unreadable.svs",
        "multi-channel-z-series.ome.tif",
        "truncated_half.tif",
    } <= set(refused)
    assert len(refused) < len(files) / 2
    for name, message in refused.items():
        assert name in message
        assert " — " in message
