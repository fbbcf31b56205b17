"""Damaged copies of slides: bytes flipped, ends cut, ranges zeroed or swapped, tags changed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import tifffile

from tests.faults.conftest import ROOT, small_slide

DICOM = ROOT.parent / "shared" / "data" / "slides" / "google_camelyon_jpeg.dcm"
_MOST_BYTES = 4 << 20  # of a slide that is copied hundreds of times


def originals(folder: Path) -> dict[str, Path]:
    """Return sound slides of as many containers and codecs as are to be had, by name."""
    dressed = {
        "jpeg.tif": {},
        "tables.tif": {"shared_tables": True},
        "deflate.tif": {"lossless": True},
        "big.tif": {"bigtiff": True},
        "rgb.svs": {"dress": "aperio", "photometric": "rgb"},
        "ome.ome.tif": {"dress": "ome"},
        "philips.tiff": {"dress": "philips"},
        "leica.scn": {"dress": "leica"},
        "trestle.tif": {"dress": "trestle"},
    }
    made = {name: small_slide(folder / name, k, **d) for k, (name, d) in enumerate(dressed.items())}
    picture = tifffile.imread(made["deflate.tif"], key=0)
    lzw, cm = folder / "lzw.tif", (2e4, 2e4)
    tifffile.imwrite(
        lzw,
        picture,
        tile=(128, 128),
        compression="lzw",
        photometric="rgb",
        resolution=cm,
        resolutionunit="CENTIMETER",
    )
    made["lzw.tif"] = lzw
    for suffix in ("png", "jpg"):
        path = folder / f"flat.{suffix}"
        cv2.imwrite(str(path), picture[..., ::-1])
        made[path.name] = path
    if DICOM.is_file() and DICOM.stat().st_size < _MOST_BYTES:
        made["camelyon.dcm"] = DICOM
    return made


def flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 4, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flipped_at_the_start(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 16))):
        data[rng.randrange(min(1024, len(data)))] ^= rng.randrange(1, 256)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def zeroed(data: bytearray, rng: random.Random) -> None:
    start, n = rng.randrange(len(data)), rng.choice((16, 512, 20_000))
    data[start : start + n] = bytes(len(data[start : start + n]))


def swapped(data: bytearray, rng: random.Random) -> None:
    n = rng.choice((64, 4096))
    a, b = rng.randrange(len(data)), rng.randrange(len(data))
    n = min(n, len(data) - max(a, b))
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


def retagged(data: bytearray, rng: random.Random) -> None:
    """Change a field of an entry in the first directory of a TIFF; flip what is none."""
    big = data[:4] == b"II\x2b\x00"
    if data[:4] != b"II\x2a\x00" and not big:
        flipped_at_the_start(data, rng)
        return
    at = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)[0]
    n = struct.unpack_from("<Q" if big else "<H", data, at)[0]
    entry = at + (8 if big else 2) + rng.randrange(n) * (20 if big else 12)
    offset, code = rng.choice(((0, "<H"), (2, "<H"), (4, "<I"), (12 if big else 8, "<I")))
    value = rng.choice((0, 1, 7, 255, 65_535, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)))
    struct.pack_into(code, data, entry + offset, value % 2 ** (16 if code == "<H" else 32))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...]
MUTATIONS = (flipped, flipped_at_the_start, cut, zeroed, swapped, retagged)


def write_mutants(sound: dict[str, Path], folder: Path, n: int, seed: int) -> list[str]:
    """Write n damaged slides, in turn of every container and kind of damage; return their ids."""
    rng = random.Random(seed)
    names = sorted(sound)
    content = {name: path.read_bytes() for name, path in sound.items()}
    ids = []
    for k in range(n):
        name, mutate = names[k % len(names)], MUTATIONS[(k // len(names)) % len(MUTATIONS)]
        data = bytearray(content[name])
        mutate(data, rng)
        path = folder / f"m{k:03}-{mutate.__name__}-{name}"
        if path.suffix == ".dcm":  # copies of a series would be one slide
            path = folder / f"{k:03}" / path.name
            path.parent.mkdir()
        path.write_bytes(data)
        ids.append(path.name)
    return ids
