"""A name planted wherever scanners write about patients appears in no output.

Pixels of labels cannot be searched for a name; they are of one colour that nothing else has.
"""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from pipelines.cli import run_command
from tests.faults.conftest import SETTINGS, small_slide
from tests.faults.mutants import DICOM

CANARY = "DOE^JOHN"
_LABEL = (0, 230, 40)  # no stain is of this green
_STATED = f"User = {CANARY}|Title = {CANARY}|Filename = {CANARY}|ScanScope ID = {CANARY}"
_STATED += f"|Date = {CANARY}|Barcode = {CANARY}|Patient: {CANARY}"


def picture(folder: Path) -> np.ndarray:
    path = small_slide(folder / "plain.tif", 5, lossless=True)
    pixels = tifffile.imread(path, key=0)
    path.unlink()
    return pixels


def write_aperio(path: Path, pixels: np.ndarray, mpp: str = "0.5") -> None:
    """Write a slide as Aperio does, with label and macro, the name in every field."""
    h, w = pixels.shape[:2]
    head = f"Aperio Image Library v11.0.0 {CANARY}"
    common = {"photometric": "rgb", "metadata": None, "software": CANARY}
    about = [(306, 2, 0, f"{CANARY}", True), (315, 2, 0, CANARY, True), (316, 2, 0, CANARY, True)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            pixels,
            tile=(128, 128),
            compression="jpeg",
            description=f"{head}\n{w}x{h} (128x128) JPEG/RGB|AppMag = 20|MPP = {mpp}|{_STATED}",
            extratags=about,
            **common,
        )
        for name, subfile in (("thumbnail", 0), ("label", 1), ("macro", 9)):
            image = np.full((96, 128, 3), _LABEL, np.uint8)
            text = f"{head}\n{name} 128x96 {CANARY}"
            tiff.write(
                image,
                compression="lzw" if name == "label" else "jpeg",
                rowsperstrip=96,
                subfiletype=subfile,
                description=text,
                **common,
            )


def write_archive(folder: Path) -> None:
    """Write slides of several kinds, sound and damaged, that all name the patient."""
    pixels = picture(folder)
    write_aperio(folder / "aperio.svs", pixels)
    write_aperio(folder / "resolution.svs", pixels, mpp=CANARY)
    write_aperio(folder / "cut.svs", pixels)
    data = (folder / "cut.svs").read_bytes()
    (folder / "cut.svs").write_bytes(data[: len(data) * 2 // 3])
    write_aperio(folder / "tile.svs", pixels)
    with tifffile.TiffFile(folder / "tile.svs") as tiff:
        at = tiff.pages.first.dataoffsets[5]
    data = bytearray((folder / "tile.svs").read_bytes())
    data[at : at + 200] = bytes(200)
    (folder / "tile.svs").write_bytes(data)
    tifffile.imwrite(
        folder / "generic.tif",
        pixels,
        tile=(128, 128),
        compression="zlib",
        photometric="rgb",
        description=f"Patient: {CANARY}",
        datetime=None,
        software=CANARY,
        metadata=None,
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    ome = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><{CANARY}></OME>'
    tifffile.imwrite(
        folder / "broken.ome.tif",
        pixels,
        tile=(128, 128),
        compression="jpeg",
        photometric="rgb",
        description=ome,
        metadata=None,
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", CANARY)
    Image.fromarray(pixels).save(folder / "flat.png", pnginfo=text, dpi=(50800, 50800))
    (folder / "text.svs").write_text(f"Patient: {CANARY}")
    if DICOM.is_file():
        dicom = pydicom.dcmread(DICOM)
        dicom.PatientName = dicom.PatientID = dicom.AccessionNumber = CANARY
        dicom.save_as(folder / "slide.dcm")


def contents(out: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of every file, of what lies within archives, and of pictures in pages."""
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        yield path.name, path.name.encode() + data
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                yield from ((f"{path.name}:{n}", archive.read(n)) for n in archive.namelist())
        for k, text in enumerate(re.findall(rb"base64,([A-Za-z0-9+/=]+)", data)):
            yield f"{path.name}:{k}", base64.b64decode(text)


def shows_label(data: bytes) -> bool:
    """Return whether bytes are a picture with pixels of the label's colour."""
    if data[:3] != b"\xff\xd8\xff" and data[:4] != b"\x89PNG":
        return False
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        return False
    away = np.abs(pixels[..., ::-1].astype(int) - _LABEL).max(axis=-1)
    return bool((away < 40).sum() > 20)


@pytest.mark.parametrize("store", ["h5", "zarr"])
def test_a_planted_name_appears_in_no_output(
    tmp_path: Path,
    store: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    write_archive(slides)
    words = ["--slides", str(slides), "--out", str(out), *SETTINGS, f"store={store}"]
    codes = [
        run_command(["scan", str(slides), "--out", str(out / "scan.csv")]),
        run_command(["preprocess", *words, "--verbose", "--debug"]),
        run_command(["preprocess", *words, "--json"]),
    ]
    said = "".join(capfd.readouterr())
    assert codes == [3, 3, 3], said
    (folder,) = (out / "bags").iterdir()
    assert (folder / "aperio.json").is_file(), said
    for name in sorted(path.stem for path in slides.iterdir()):
        run_command(["why", name, "--out", str(out), "--json"])
    run_command(["bags", "ls", str(folder), "--json"])
    run_command(["bags", "verify", str(folder), "--json"])
    said += "".join(capfd.readouterr())
    found = list(contents(out))
    assert len(found) > 20
    outputs = [*found, ("what was said", said.encode())]
    leaks = [n for n, data in outputs for word in ("DOE^", "^JOHN") if word.encode() in data]
    leaks += [n for n, data in outputs if CANARY.encode("utf-16-le") in data]
    assert leaks == []
    assert [name for name, data in found if shows_label(data)] == []
    logs = "".join(path.read_text() for path in (out / "log").iterdir())
    assert str(tmp_path) not in logs
