"""`wsi bags import|convert|audit|relink` as typed, on archives and slides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest
import torch

from pipelines.cli import run_command
from wsi.bags import check_uniform, open_store
from wsi.encoders import load_encoder
from wsi.errors import BagMismatchError
from wsi.slides.dress import pyramid, write_slide
from wsi.specs import Component

Json = Callable[..., Any]


@pytest.fixture
def said_json(capsys: pytest.CaptureFixture[str]) -> Json:
    """Run a command line with --json; return the document on stdout."""

    def of(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert run_command([*map(str, words), "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return of


def trident_of_slides(archives, folder: Path, root: Path, change=lambda tiles: tiles) -> Path:
    """Embed tiles of two slides as read by OpenSlide alone, and write them as TRIDENT does."""
    encoder = load_encoder(Component(name="texture-v1"))
    for name in ("a.svs", "site/b.tif"):
        slide = openslide.OpenSlide(folder / name)
        xy0 = np.array([(x, y) for y in (384, 640) for x in (256, 512)])
        tiles = np.stack(
            [
                np.asarray(slide.read_region(tuple(map(int, c)), 0, (256, 256)).convert("RGB"))
                for c in xy0
            ]
        )
        features = encoder.embed(torch.from_numpy(np.ascontiguousarray(change(tiles)))).numpy()
        given = type(archives.tiles(0))(features, xy0)
        job = archives.trident(root, {Path(name).stem: given}, encoder="texture-v1", size0=256)
    return job


# -- import and convert ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--in-place"]])
def test_refused_slides_are_in_the_table_and_the_exit_code_is_3(
    archives, tmp_path, said_json, capsys, flags
):
    source = archives.trident(tmp_path, {n: archives.tiles(k) for k, n in enumerate("abc")})
    with h5py.File(source / "features_uni_v1" / "b.h5", "r+") as file:
        file["x"] = h5py.ExternalLink("y.h5", "/y")
    words = ["bags", "import", source, "--from", "trident", "--out", tmp_path / "ours", *flags]
    assert run_command([*map(str, words), "--dry-run"]) == 3
    assert not (tmp_path / "ours").exists()
    said = said_json(*words, code=3)
    assert (said["imported"], said["kept"], said["in_place"]) == (2, 0, bool(flags))
    assert said["precision"] == {"float32": 2}
    (refused,) = said["refused"]
    assert (refused["slide_id"], refused["code"], refused["rule"]) == (
        "b",
        "UNSAFE",
        "external-link",
    )
    assert run_command(list(map(str, words))) == 3
    shown = capsys.readouterr()
    assert "b\tUNSAFE\texternal-link\t" in shown.out
    assert "2 kept, 1 refused" in shown.err
    assert run_command(["bags", "verify", str(tmp_path / "ours")]) == 0
    assert open_store(tmp_path / "ours").ids() == ["a", "c"]


def test_what_an_archive_lacks_is_asked_for(archives, tmp_path, capsys):
    clam = archives.clam(tmp_path / "c", {"a": archives.tiles(0)})
    words = ["bags", "import", str(clam), "--from", "clam", "--out", str(tmp_path / "o")]
    assert run_command(words) == 2
    assert "--encoder" in capsys.readouterr().err
    assert run_command([*words, "--encoder", "resnet50"]) == 0
    stamp = archives.stamp(tmp_path / "s", {"a": archives.tiles(0)})
    words = ["bags", "import", str(stamp), "--from", "stamp", "--out", str(tmp_path / "p")]
    assert run_command(words) == 3
    assert "no-mpp" in capsys.readouterr().out
    assert run_command([*words, "--mpp", "0.25"]) == 0
    np.testing.assert_array_equal(open_store(tmp_path / "p").read("a").xy0, archives.tiles(0).xy0)


def test_masks_that_are_pickles_are_skipped_and_said(archives, tmp_path, said_json):
    clam = archives.clam(tmp_path / "c", {"a": archives.tiles(0)})
    (clam / "masks").mkdir()
    (clam / "masks" / "a.pkl").write_bytes(b"cos\nsystem\n")
    words = ["bags", "import", clam, "--from", "clam", "--out", tmp_path / "o", "--encoder", "x"]
    (said,) = said_json(*words)["passed_over"]
    assert "1 pickles" in said


def test_slides_at_hand_give_resolution_and_fingerprint(
    archives, tmp_path, slide_folder, said_json
):
    source = archives.stamp(tmp_path, {"site/b": archives.tiles(0)}, mpp0=0.5)
    words = ["bags", "import", source, "--from", "stamp", "--out", tmp_path / "o"]
    said_json(*words, "--slides", slide_folder)
    made = open_store(tmp_path / "o").info("site/b").provenance
    assert made.slide["mpp"] == [0.5, 0.5]
    assert made.slide["size0"] == [1024, 1024]
    assert len(made.slide["fingerprint"]) == 64


@pytest.mark.parametrize("to", ["clam", "trident"])
def test_bags_are_exported_and_imported_again(archives, tmp_path, said_json, to):
    source = archives.trident(tmp_path, {"a": archives.tiles(0), "b": archives.tiles(1)})
    ours = tmp_path / "ours"
    said_json("bags", "import", source, "--from", "trident", "--out", ours, "--mpp", "0.25")
    said = said_json("bags", "convert", ours, "--to", to, "--out", tmp_path / "theirs")
    assert (said["bags"], said["format"], said["written"]) == (2, to, 2)
    words = ["bags", "import", tmp_path / "theirs", "--from", to, "--out", tmp_path / "back"]
    said_json(*words, *(["--encoder", "x"] if to == "clam" else []))
    for seed, slide_id in enumerate("ab"):
        bag = open_store(tmp_path / "back").read(slide_id)
        np.testing.assert_array_equal(bag.features, archives.tiles(seed).features)
        np.testing.assert_array_equal(bag.xy0, archives.tiles(seed).xy0)


def test_looking_at_archives_loads_no_torch(archives, tmp_path):
    source = archives.trident(tmp_path, {"a": archives.tiles(0)})
    code = (
        "import sys; from pipelines.cli import run_command\n"
        "for words in ('import {0} --from trident --out {1}', 'audit {0}', 'audit {1}',\n"
        "              'convert {1} --to trident --out {2}', 'relink {1} --slides {3}'):\n"
        "    assert run_command(['bags', *words.format(*sys.argv[1:]).split()]) == 0, words\n"
        "assert not {'torch', 'timm', 'zarr', 'sklearn'} & set(sys.modules)"
    )
    (tmp_path / "none").mkdir()
    words = [source, tmp_path / "ours", tmp_path / "theirs", tmp_path / "none"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, env=os.environ)


def test_a_limit_on_tissue_that_an_archive_does_not_record_is_refused(archives, tmp_path, capsys):
    source = archives.trident(
        tmp_path, {n: archives.tiles(k) for k, n in enumerate("abcdefghijkl")}
    )
    ours, table = tmp_path / "ours", tmp_path / "cohort.csv"
    assert (
        run_command(["bags", "import", str(source), "--from", "trident", "--out", str(ours)]) == 0
    )
    rows = [f"{s},p{s},{'xy'[k % 2]}" for k, s in enumerate("abcdefghijkl")]
    table.write_text("\n".join(["slide_id,patient_id,label", *rows]))
    words = ["train", "data.classes=[x,y]", "split.folds=2", "fit.epochs=1", "--cohort", str(table)]
    words += ["--bags", str(ours), "--out", str(tmp_path / "run")]
    assert run_command([*words, "data.min_tissue=0.1", "--dry-run"]) == 5
    assert "no tissue fractions" in capsys.readouterr().err
    assert run_command([*words, "--dry-run"]) == 0


# -- audit ---------------------------------------------------------------------------------------


def test_an_audit_lists_findings_and_exits_with_5_on_an_error(archives, tmp_path, said_json):
    slides = {"a": archives.tiles(0), "b": archives.tiles(1)}
    source = archives.trident(tmp_path, slides)
    (finding,) = said_json("bags", "audit", source, "--mpp", "0.25")
    assert finding["severity"] == "info"
    assert set(finding) == {"severity", "rule", "message", "ids", "line"}
    slides["b"].features[0] = np.nan
    archives.trident(tmp_path, slides)
    found = said_json("bags", "audit", source, "--from", "trident", code=5)
    assert [(f["severity"], f["rule"], f["ids"]) for f in found] == [
        ("error", "non-finite", ["b"]),
        ("info", "no-mpp", ["a", "b"]),
    ]


def test_an_audit_says_what_it_needs(archives, tmp_path, capsys):
    source = archives.trident(tmp_path, {"a": archives.tiles(0)})
    for words, said in [
        (["--recompute", "2"], "--slides"),
        (["tiling.mpp=0.5"], "--recompute"),
        (["--recompute", "2", "--slides", str(tmp_path)], "import"),
    ]:
        assert run_command(["bags", "audit", str(source), *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--in-place"]])
def test_tiles_embedded_again_verify_an_archive(archives, tmp_path, slide_folder, said_json, flags):
    job = trident_of_slides(archives, slide_folder, tmp_path)
    ours = tmp_path / "ours"
    words = ["bags", "import", job, "--from", "trident", "--out", ours, "--slides", slide_folder]
    said_json(*words, *flags)
    before = open_store(ours).read("a")
    assert before.provenance.encoder["state"] == "declared"
    words_of_audit = ["bags", "audit", ours, "--recompute", 10, "--slides", slide_folder]
    if flags:
        assert "verified" not in {f["rule"] for f in said_json(*words_of_audit, "--dry-run")}
        assert open_store(ours).info("a").provenance == before.provenance
    found = said_json(*words_of_audit)
    rules = {f["rule"]: f for f in found}
    assert set(rules) == {"field-of-view", "recomputed", "verified"}
    assert rules["verified"]["ids"] == ["a", "b"]
    after = open_store(ours).read("a")
    assert after.provenance.encoder["state"] == "verified"
    assert after.provenance.encoder["declared"] == before.provenance.encoder
    encoder = load_encoder(Component(name="texture-v1"))
    assert after.provenance.encoder["fingerprint"] == encoder.fingerprint
    np.testing.assert_array_equal(after.features, before.features)
    assert run_command(["bags", "verify", str(ours)]) == 0
    assert said_json(*words, *flags)["kept"] == 2  # and stays verified
    assert open_store(ours).info("a").provenance.encoder["state"] == "verified"


def test_own_bags_join_an_archive_once_it_is_verified(archives, tmp_path, slide_folder, said_json):
    out = tmp_path / "OUT"
    own = slide_folder / "site" / "c.tif"
    words = ["preprocess", "--slides", own, "--out", out, "precision=float32"]
    assert run_command(list(map(str, words))) == 0
    (recipe,) = (out / "bags").iterdir()
    job = trident_of_slides(archives, slide_folder, tmp_path)
    said_json("bags", "import", job, "--from", "trident", "--out", recipe, "--slides", slide_folder)
    store = open_store(recipe)
    assert store.ids() == ["a", "b", "c"]
    with pytest.raises(BagMismatchError, match="fingerprint=declared"):
        check_uniform(store.infos())
    said_json("bags", "audit", recipe, "--recompute", 1, "--slides", slide_folder, code=5)  # mixed
    check_uniform(store.infos())
    assert not [f for f in said_json("bags", "audit", recipe) if f["severity"] == "error"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        pytest.param(lambda tiles: tiles[..., ::-1], "blue, green, red", marks=pytest.mark.slow),
        (lambda tiles: np.roll(tiles, 1, axis=0), "different orders"),
        pytest.param(lambda tiles: 255 - tiles, "another encoder", marks=pytest.mark.slow),
    ],
    ids=["bgr", "order", "other"],
)
def test_features_that_differ_are_not_verified_and_the_likely_cause_is_named(
    archives, tmp_path, slide_folder, said_json, change, cause
):
    job = trident_of_slides(archives, slide_folder, tmp_path, change)
    ours = tmp_path / "ours"
    said_json("bags", "import", job, "--from", "trident", "--out", ours)
    found = said_json("bags", "audit", ours, "--recompute", 1, "--slides", slide_folder, code=5)
    (error,) = [f for f in found if f["severity"] == "error"]
    assert (error["rule"], error["ids"]) == ("recomputed-differs", ["a"])
    assert cause in error["message"]
    assert open_store(ours).info("a").provenance.encoder["state"] == "declared"


@pytest.mark.slow
def test_exchanged_axes_and_wrong_sizes_are_recognised(archives, picture, tmp_path, said_json):
    slides = tmp_path / "slides"
    for name in ("a.svs", "site/b.tif"):  # tissue in one corner, so that places differ
        (slides / name).parent.mkdir(parents=True, exist_ok=True)
        levels = pyramid(picture(centre=(0.35, 0.65), radius=0.22), 2)
        write_slide(slides / name, levels, mpp=0.5)
    job = trident_of_slides(archives, slides, tmp_path)
    with h5py.File(job / "features_texture-v1" / "a.h5", "r+") as file:
        file["coords"][...] = file["coords"][...][:, ::-1]
    with h5py.File(job / "features_texture-v1" / "b.h5", "r+") as file:
        file["coords"].attrs["patch_size_level0"] = 512
    ours = tmp_path / "ours"
    said_json("bags", "import", job, "--from", "trident", "--out", ours)
    found = said_json("bags", "audit", ours, "--recompute", 2, "--slides", slides, code=5)
    told = {f["ids"][0]: f["message"] for f in found if f["rule"] == "recomputed-differs"}
    assert "x and y exchanged" in told["a"]
    assert "half as large" in told["b"]


def test_an_encoder_that_is_not_known_here_is_named(archives, tmp_path, slide_folder, capsys):
    source = archives.trident(tmp_path, {"a": archives.tiles(0)}, encoder="texture_v1")
    ours = tmp_path / "ours"
    assert (
        run_command(["bags", "import", str(source), "--from", "trident", "--out", str(ours)]) == 0
    )
    words = ["bags", "audit", str(ours), "--recompute", "1", "--slides", str(slide_folder)]
    assert run_command(words) == 2
    assert "did you mean 'texture-v1'" in capsys.readouterr().err


# -- relink --------------------------------------------------------------------------------------


def test_a_moved_slide_is_relinked_and_not_embedded_again(
    archives, tmp_path, slide_folder, said_json
):
    import shutil

    source = archives.trident(tmp_path, {"b": archives.tiles(0)})
    ours, moved = tmp_path / "ours", tmp_path / "moved" / "new"
    said_json(
        "bags", "import", source, "--from", "trident", "--out", ours, "--slides", slide_folder
    )
    moved.mkdir(parents=True)
    shutil.copy(slide_folder / "site" / "b.tif", moved / "renamed.tif")
    words = ["bags", "relink", ours, "--slides", tmp_path / "moved"]
    said = said_json(*words, "--dry-run")
    assert said["moved"] == [{"old": "b", "new": "new/renamed"}]
    assert open_store(ours).ids() == ["b"]
    assert said_json(*words)["moved"] == said["moved"]
    assert open_store(ours).ids() == ["new/renamed"]
    assert run_command(["bags", "verify", str(ours)]) == 0
    shutil.copy(moved / "renamed.tif", moved / "one.tif")
    shutil.move(moved / "renamed.tif", moved / "two.tif")
    said = said_json(*words, code=3)
    assert set(said["refused"]) == {"new/one", "new/two"}
