"""Print what reading tiles costs: our readers beside raw JPEG decoding and beside OpenSlide.

Slides of real texture with 256, 240 and 512 px file tiles are written to a temporary folder; tiles
of the slide's own resolution are read from them, aligned with the file tiles and not. All ways
run in turn, several times over, in one process and on one thread; printed are medians of CPU time
and their ratios. Every tile is compared with OpenSlide's, bit by bit, before anything is timed.

    python benchmarks/read.py [--source SLIDE] [--rounds 7] [--fallback SLIDE ...]

"raw" reads and decodes each file tile that the tiles touch once and does nothing else: the limit.
Goals: ours at least .75 of it (.85 aligned), at least 4x OpenSlide, and at least .95x OpenSlide on
formats that only OpenSlide reads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg
from numpy.typing import NDArray

from wsi.slides import Slide, open_slide
from wsi.slides.dress import pyramid, write_slide
from wsi.slides.synthetic import SITES, draw
from wsi.slides.tiff_index import after_application_markers, index_levels

MPP = 0.25
SIZE0 = (32768, 6144)  # as wide as a slide: OpenSlide keeps 32 MB of file tiles, not a whole row
TILE_PX = 256
SQUARE = 768  # of texture, repeated over the slide
VARIANTS = ((256, "420"), (240, "420"), (512, "420"), (240, "422"), (256, "444"))
SHARE = 0.3  # of the grid that holds tissue, in blobs as on a slide

Corners = list[tuple[int, int]]


def main() -> None:
    """Write the slides, compare all pixels, time the ways in turn, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, help="slide to take the texture from")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fallback", type=Path, nargs="*", default=[], help="slides to try")
    options = parser.parse_args()
    picture = texture(options.source)
    print("CPU ms per tile of 256 px (medians)")
    print("file tiles   grid       raw    ours  openslide | of raw  x openslide   2 threads, wall")
    with tempfile.TemporaryDirectory() as folder:
        for edge, subsampling in VARIANTS:
            path = Path(folder) / f"{edge}-{subsampling}.svs"
            write_slide(
                path,
                pyramid(picture, 3),
                mpp=MPP,
                dress="aperio",
                quality=80,
                tile=edge,
                subsampling=subsampling,
                shared_tables=True,
            )
            for aligned in (True, False):
                compare(path, edge, subsampling, aligned, options.rounds)
    for path in options.fallback:
        compare_fallback(path, options.rounds)


def texture(source: Path | None) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) of SIZE0, of mirrored copies of a slide's densest square."""
    if source is None:
        pixels = draw("normal", SITES[0], seed=0).pixels
    else:
        with open_slide(source) as slide:
            pixels = slide.read((0, 0), 0, slide.info.size0)
    mean = cv2.boxFilter(pixels.mean(axis=2).astype(np.float32), -1, (SQUARE, SQUARE))
    inner = mean[SQUARE // 2 : -SQUARE // 2, SQUARE // 2 : -SQUARE // 2]
    y, x = np.unravel_index(int(inner.argmin()), inner.shape)
    square = pixels[y : y + SQUARE, x : x + SQUARE]
    across = np.concatenate([square, square[:, ::-1]], axis=1)
    both = np.concatenate([across, across[::-1]], axis=0)
    times = -(-SIZE0[1] // both.shape[0]), -(-SIZE0[0] // both.shape[1]), 1
    return np.ascontiguousarray(np.tile(both, times)[: SIZE0[1], : SIZE0[0]])


def grid(edge: int, aligned: bool) -> Corners:
    """Return corners of tiles in blobs over about SHARE of the slide, row by row."""
    step = edge if aligned and TILE_PX % edge and edge % TILE_PX else TILE_PX
    x0, y0 = (0, 0) if aligned else (37, 91)
    xs, ys = np.arange(x0, SIZE0[0] - TILE_PX, step), np.arange(y0, SIZE0[1] - TILE_PX, step)
    x, y = np.meshgrid(xs, ys)
    blobs = np.sin(x / 700) + np.cos(y / 900)
    kept = blobs >= np.quantile(blobs, 1 - SHARE)
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


def compare(path: Path, edge: int, subsampling: str, aligned: bool, rounds: int) -> None:
    """Print one row: reading tiles at level 0 in every way."""
    corners = grid(edge, aligned)
    tile_px = edge if aligned and edge < TILE_PX else TILE_PX
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        check_pixels(ours, theirs, corners, tile_px)
        ways: dict[str, Callable[[], None]] = {
            "raw": raw_decode(path, ours, corners, tile_px),
            "ours": lambda: drain(ours, corners, tile_px),
            "openslide": lambda: by_openslide(theirs, corners, tile_px),
        }
        cpu, wall = timed(ways, rounds)
    with open_slide(path, threads=2) as threaded:
        drain(threaded, corners[:8], tile_px)
        _, both = timed({"threaded": lambda: drain(threaded, corners, tile_px)}, rounds)
    ms = {name: 1e3 * seconds / len(corners) for name, seconds in cpu.items()}
    print(
        f"{edge} {subsampling:5}    {'aligned  ' if aligned else 'unaligned'}"
        f" {ms['raw']:6.3f}  {ms['ours']:6.3f}  {ms['openslide']:9.3f} |"
        f" {ms['raw'] / ms['ours']:6.2f}  {ms['openslide'] / ms['ours']:11.2f}"
        f"   {wall['ours'] / both['threaded']:6.2f}x faster",
        flush=True,
    )


def compare_fallback(path: Path, rounds: int) -> None:
    """Print one row for a slide that is read through OpenSlide."""
    if not openslide.OpenSlide.detect_format(path):
        print(f"{path.name}: OpenSlide does not read it")
        return
    with open_slide(path, mpp=MPP) as ours, openslide.OpenSlide(path) as theirs:
        w, h = ours.info.size0
        corners = [
            (x, y)
            for y in range(0, h - TILE_PX + 1, TILE_PX)
            for x in range(0, w - TILE_PX + 1, TILE_PX)
        ]
        ways: dict[str, Callable[[], None]] = {
            "ours": lambda: drain(ours, corners, TILE_PX),
            "openslide": lambda: by_openslide(theirs, corners, TILE_PX),
        }
        cpu, _ = timed(ways, rounds)
        note = ours.info.reader_note
    print(f"{path.name}: {cpu['openslide'] / cpu['ours']:.2f}x openslide ({note})", flush=True)


def check_pixels(ours: Slide, theirs: openslide.OpenSlide, corners: Corners, tile_px: int) -> None:
    """Stop unless the fast reader is at work and every tile has OpenSlide's pixels."""
    tiles = ours.read_tiles(corners, tile_px, MPP)
    for corner, tile in zip(corners, tiles, strict=True):
        wanted = np.asarray(theirs.read_region(corner, 0, (tile_px, tile_px)).convert("RGB"))
        if not isinstance(tile, np.ndarray) or not np.array_equal(tile, wanted):
            raise SystemExit(f"{ours.info.path.name}: other pixels than OpenSlide's at {corner}")
    if ours.info.reader != "tiff":
        raise SystemExit(f"{ours.info.path.name}: not read fast, {ours.info.reader_note}")


def raw_decode(path: Path, slide: Slide, corners: Corners, tile_px: int) -> Callable[[], None]:
    """Return a function that reads and decodes each file tile touched, once."""
    level = index_levels(path, slide.info)[0]
    w, h = level.tile
    touched = sorted(
        {
            (r, c)
            for x, y in corners
            for r in range(y // h, (y + tile_px - 1) // h + 1)
            for c in range(x // w, (x + tile_px - 1) // w + 1)
        }
    )
    places = [(int(level.offsets[p]), int(level.counts[p])) for p in touched]
    file = os.open(path, os.O_RDONLY)

    def decode() -> None:
        for offset, count in places:
            stream = os.pread(file, count, offset)
            simplejpeg.decode_jpeg(level.head + stream[after_application_markers(stream) :])

    return decode


def drain(slide: Slide, corners: Corners, tile_px: int) -> None:
    """Read all tiles and let them go."""
    for _ in slide.read_tiles(corners, tile_px, slide.info.mpp[0] if slide.info.mpp else MPP):
        pass


def by_openslide(slide: openslide.OpenSlide, corners: Corners, tile_px: int) -> None:
    """Read all tiles as most tools do, one read_region each."""
    for corner in corners:
        np.asarray(slide.read_region(corner, 0, (tile_px, tile_px)).convert("RGB"))


def timed(
    ways: dict[str, Callable[[], None]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median CPU and wall seconds of each way, run in turn."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before, clock = time.process_time(), time.perf_counter()
            way()
            cpu[name].append(time.process_time() - before)
            wall[name].append(time.perf_counter() - clock)
    median = statistics.median
    return {k: median(v) for k, v in cpu.items()}, {k: median(v) for k, v in wall.items()}


if __name__ == "__main__":
    main()
