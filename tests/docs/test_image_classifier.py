"""The image example: what its loop learns, and which folders of patches it takes."""

from __future__ import annotations

import importlib.util
import re
import sys
import zipfile
import zlib
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

PATH = Path(__file__).parents[2] / "docs" / "examples" / "image_classifier.py"


@cache
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_classifier", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def patch(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.integers(shade, shade + 60, (24, 24, 3), dtype=np.uint8)).save(path)


def bags(root: Path) -> Path:
    """Patches in a folder per slide, with tables of labels, as a zip with a Mac's leftovers."""
    for part, slides in (("train", ("a", "b")), ("valid", ("c", "d"))):
        rows = []
        for k, slide in enumerate(slides):
            rows.append(f"{slide},{k}\n")
            for n in range(6):
                patch(root / "set" / part / "bags" / slide / f"{part}{k}{n}.png", 20 + 150 * k)
        (root / "set" / part / "labels.csv").write_text("wsi,label\n" + "".join(rows))
    archive = root / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((root / "set").rglob("*")):
            file.write(path, path.relative_to(root))
        file.writestr("__MACOSX/set/train/._a.png", b"no image")
        file.writestr("set/train/.DS_Store", b"")
    return archive


def figures(text: str) -> dict[str, float]:
    return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) +accuracy ([\d.]+)", text, re.M)}


def test_digits_are_learned_by_any_objective(capsys: pytest.CaptureFixture[str]) -> None:
    assert example().main(["--n", "400", "--epochs", "10", "--px", "16"]) == 0
    found = figures(capsys.readouterr().out)
    assert found.keys() == {"ce", "ncmi"}
    assert min(found.values()) > 0.7  # by chance a tenth


def test_patches_take_the_label_of_their_slide(tmp_path: Path) -> None:
    images = example().patches(bags(tmp_path), seed=0, px=16)
    assert images.classes == ("0", "1")
    for x, y in (images.train, images.test):
        assert x.shape == (12, 3, 16, 16)
        np.testing.assert_array_equal(x.mean((1, 2, 3)) > 0, y == 1)  # bright is class 1


def test_a_folder_per_class_is_divided(tmp_path: Path) -> None:
    for k, name in enumerate(("normal", "tumour")):
        for n in range(8):
            patch(tmp_path / name / f"{n}.png", 20 + 150 * k)
    images = example().patches(tmp_path, seed=0, px=16)
    assert images.classes == ("normal", "tumour")
    assert [len(part[1]) for part in (images.train, images.test)] == [12, 4]
    assert images.test[1].bincount().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"a/x.png": b"no image", "b/y.png": b""}, "no train image|is no readable image"),
        ({"a/x.txt": b""}, "0 classes in 0 images"),
        ({"labels.csv": b"wsi,label\ns,1\n", "t/x.png": b""}, "labels.csv has no row t"),
    ],
)
def test_what_cannot_be_used_is_named(
    made: dict[str, bytes], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in made.items():
        for part in ("train", "test"):
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    assert example().main(["--patches", str(tmp_path)]) == 5
    assert re.search(message, capsys.readouterr().err)


def test_a_misspelt_objective_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert example().main(["--objective", "ncmii"]) == 2
    assert "ncmi" in capsys.readouterr().err
