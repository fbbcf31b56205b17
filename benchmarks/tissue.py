"""Print what it costs to take a slide to its tile coordinates: CPU time, parts, memory.

The slides are made here, in a temporary folder: a pyramid of 32,768 x 24,576 px (0.25 um/px, JPEG
file tiles of 256 px, Q80, about 30 % tissue) and a flat TIFF of 14,000 x 14,000 px without any
reduced level. Slide to coordinates is open_slide (fingerprint, resolution) and locate (thumbnail,
tissue, grid). Beside it, in turn in the same process, runs the plain way: OpenSlide's
get_thumbnail, Otsu on grey over the float picture, and a loop over boxes. Memory is the peak of a
fresh process above that of one that only imports. Slides beyond what is worth writing are painted
in memory. Goals: 0.15 CPU-s on the pyramid, 150 MB on the flat TIFF, no growth with the slide.

    python benchmarks/tissue.py [--rounds 9] [--reader auto] [--method od_otsu]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi.extract import Located, Tiling, locate
from wsi.slides import Slide, SlideInfo, open_slide
from wsi.slides.base import Region
from wsi.slides.synthetic import SITES, Tissue, draw
from wsi.specs import Component, SlidesSpec, TissueSpec
from wsi.tiling import make_grid
from wsi.tissue import find_tissue

TILE = 256
MPP = 0.25
GLASS = 244
BIG = 32_768, 24_576
FLAT = 14_000, 14_000
TILING = Tiling(mpp=0.5, tile_px=256, stride_um=None, min_tissue=0.05, max_upsampling=1.05)


def write_big(path: Path, size0: tuple[int, int], downsamples: Sequence[int]) -> None:
    """Write a slide of texture on glass that is never held whole: two pieces, 30 % tissue."""
    texture = draw_texture()
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for downsample in downsamples:
            w, h = size0[0] // downsample, size0[1] // downsample
            tiff.write(
                encoded_tiles(texture, (w, h), downsample),
                shape=(h, w, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=0 if downsample == 1 else 1,
                resolution=(1e4 / (MPP * downsample),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def draw_texture() -> NDArray[np.uint8]:
    """Return 2048 x 2048 px of H&E-like tissue that repeats without a seam."""
    drawing = draw("large-cell", SITES[2], 0, Tissue(size_um=(2048, 2048)))
    depth = cv2.distanceTransform(drawing.tissue.astype(np.uint8), cv2.DIST_C, 3)
    y, x = (int(k) for k in np.unravel_index(int(np.argmax(depth)), depth.shape))
    block = drawing.pixels[y - 256 : y + 256, x - 256 : x + 256]
    large = cv2.resize(block, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    right = np.hstack([large, large[:, ::-1]])
    return np.ascontiguousarray(np.vstack([right, right[::-1]]))


def is_tissue(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where tissue lies, in shares of the slide's width and height: two ellipses."""
    one = np.hypot((x - 0.3) / 0.22, (y - 0.5) / 0.28) < 1
    return one | (np.hypot((x - 0.76) / 0.12, (y - 0.55) / 0.3) < 1)


def encoded_tiles(
    texture: NDArray[np.uint8], size: tuple[int, int], downsample: int
) -> Iterator[bytes]:
    """Yield the JPEG tiles of one level; whole tiles of the same content are encoded once."""
    edge = len(texture) // downsample
    small = cv2.resize(texture, (edge, edge), interpolation=cv2.INTER_AREA)
    repeated = np.tile(small, (TILE // edge + 2, TILE // edge + 2, 1))
    known: dict[tuple[int, int, bool], bytes] = {}
    for top in range(0, size[1], TILE):
        for left in range(0, size[0], TILE):
            y, x = top % edge, left % edge
            sample = tissue_in(left, top, size, 32)
            whole = bool(sample.all() or not sample.any())
            key = (y, x, bool(sample.any()))
            if whole and key in known:
                yield known[key]
                continue
            shown = tissue_in(left, top, size, 1)[..., None]
            tile = np.where(shown, repeated[y : y + TILE, x : x + TILE], np.uint8(GLASS))
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), 80, colorsubsampling="420")
            if whole:
                known[key] = jpeg
            yield jpeg


def tissue_in(left: int, top: int, size: tuple[int, int], every: int) -> NDArray[np.bool_]:
    """Return tissue at every so many pixels of the tile at (left, top) of a level."""
    x, y = (np.arange(start, start + TILE, every) + 0.5 for start in (left, top))
    return is_tissue(x[None, :] / size[0], y[:, None] / size[1])


class PaintedSlide(Slide):
    """A slide of any size that is computed where it is read, to measure memory by itself."""

    def __init__(self, edge: int) -> None:
        sizes = tuple((edge // d, edge // d) for d in (1, 4, 16, 32))
        shares = (np.arange(1024) + 0.5) / 1024
        self._tissue = is_tissue(shares[None, :], shares[:, None])
        self.info = SlideInfo(
            slide_id="painted",
            path=Path("painted"),
            vendor="painted",
            size0=sizes[0],
            mpp=(MPP, MPP),
            mpp_source="painted",
            mpp_state="ok",
            level_sizes=sizes,
            downsamples=tuple((edge / w, edge / h) for w, h in sizes),
            bounds0=(0, 0, *sizes[0]),
            background=(255, 255, 255),
            fingerprint="painted",
        )

    def close(self) -> None:
        """Nothing is open."""

    @property
    def icc_profile(self) -> bytes | None:
        return None

    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        w, h = self.info.level_sizes[level]
        columns = np.arange(xy[0], xy[0] + size[0]) * self._tissue.shape[1] // w
        rows = np.arange(xy[1], xy[1] + size[1]) * self._tissue.shape[0] // h
        pixels = np.full((size[1], size[0], 3), GLASS, np.uint8)
        pixels[self._tissue[np.ix_(rows, columns)]] = (190, 110, 165)
        return Region(pixels, None, (float(xy[0]), float(xy[1])))


def coordinates(path: Path, method: str, reader: str) -> Located:
    """Return the tiles of a slide: what is measured."""
    spec = TissueSpec(method=Component(name=method))
    if path.name.startswith("painted-"):
        return locate(PaintedSlide(int(path.name.removeprefix("painted-"))), spec, TILING)
    with open_slide(path, spec=SlidesSpec.model_validate({"reader": reader})) as slide:
        return locate(slide, spec, TILING)


def parts(path: Path, method: str, reader: str) -> dict[str, float]:
    """Return CPU-s of opening, thumbnail, tissue without it, and grid."""
    spec = TissueSpec(method=Component(name=method))
    clock = [time.process_time()]
    with open_slide(path, spec=SlidesSpec.model_validate({"reader": reader})) as slide:
        clock.append(time.process_time())
        slide.thumbnail(spec.mpp / MPP)
        clock.append(time.process_time())
        mask, _ = find_tissue(slide, spec)
        clock.append(time.process_time())
        make_grid(slide.info, mask.fraction, tile_px=TILING.tile_px, mpp=TILING.mpp)
        clock.append(time.process_time())
    opening, thumbnail, finding, grid = np.diff(clock)
    return {
        "open": opening,
        "thumbnail": thumbnail,
        "tissue": max(0.0, finding - thumbnail),
        "grid": grid,
    }


def plainly(path: Path) -> int:
    """Return the number of tiles found the plain way."""
    with openslide.OpenSlide(path) as slide:
        w, h = slide.dimensions
        thumbnail = slide.get_thumbnail((w * MPP / 8, h * MPP / 8)).convert("RGB")
    grey = np.asarray(thumbnail, np.float64) @ [0.2125, 0.7154, 0.0721]
    mask = grey < plain_otsu(grey)
    scale = w / mask.shape[1]
    step = TILING.tile_px * TILING.mpp / MPP
    kept = 0
    for top in np.arange(0, h - step + 1, step):
        for left in np.arange(0, w - step + 1, step):
            rows = slice(int(top / scale), int((top + step) / scale))
            columns = slice(int(left / scale), int((left + step) / scale))
            kept += mask[rows, columns].mean() >= TILING.min_tissue
    return kept


def plain_otsu(values: NDArray[np.float64]) -> float:
    """Return the centre of the histogram bin that parts two classes best, of 256."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / below
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.cumsum(counts[::-1]))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[np.argmax(between)])


def alternately(rounds: int, **work: Callable[[], object]) -> dict[str, float]:
    """Return the median CPU-s of each piece of work, done in turn so that noise hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, act in work.items():
            started = time.process_time()
            act()
            seconds[name].append(time.process_time() - started)
    return {name: float(np.median(taken[1:] or taken)) for name, taken in seconds.items()}


def resident_peak() -> float:
    """Return this process's highest resident size so far in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


def measured_in_child(words: Sequence[str]) -> float:
    """Return the peak in MB of a fresh process that does one slide, or only imports."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def peak_above_import(name: str, options: argparse.Namespace) -> float:
    """Return MB by which the peak of a fresh process exceeds that of one that only imports."""
    words = ["--method", options.method, "--reader", options.reader]
    return measured_in_child([name, *words]) - measured_in_child(["", *words])


def report_time(path: Path, options: argparse.Namespace) -> None:
    """Print CPU time, parts and the ratio to the plain way for one slide."""
    rounds = options.rounds if path.stem == "pyramid" else min(3, options.rounds)
    taken = alternately(
        rounds,
        ours=lambda: coordinates(path, options.method, options.reader),
        plain=lambda: plainly(path),
    )
    split = [parts(path, options.method, options.reader) for _ in range(rounds)]
    shown = ", ".join(f"{k} {np.median([s[k] for s in split]) * 1e3:.1f}" for k in split[0])
    located = coordinates(path, options.method, options.reader)
    tiles = f"{len(located.grid)} of {located.grid.considered} tiles"
    print(f"{path.stem:9s} {taken['ours']:.3f} CPU-s slide -> coordinates ({tiles})")
    print(f"{'':9s} parts in ms: {shown}")
    print(f"{'':9s} {taken['plain']:.3f} CPU-s the plain way ({plainly(path)} tiles)")
    print(f"{'':9s} ratio {taken['plain'] / taken['ours']:.2f}")


def main() -> None:
    """Make the slides, then print times and peaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="alternated runs; the first warms up")
    parser.add_argument("--method", default="od_otsu", help="see `wsi list tissue`")
    parser.add_argument("--reader", default="auto", help="auto or openslide")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        if options.child:
            coordinates(Path(options.child), options.method, options.reader)
        print(json.dumps(resident_peak()))
        return
    with tempfile.TemporaryDirectory() as folder:
        pyramid, flat = Path(folder, "pyramid.tif"), Path(folder, "flat.tif")
        write_big(pyramid, BIG, (1, 4, 16))
        write_big(flat, FLAT, (1,))
        for path in (pyramid, flat):
            report_time(path, options)
        print("peak memory above import")
        for name in (str(pyramid), str(flat), *(f"painted-{n}000" for n in (32, 64, 128, 200))):
            shown = Path(name).stem
            print(f"{shown:15s} {peak_above_import(name, options):6.0f} MB")


if __name__ == "__main__":
    main()
