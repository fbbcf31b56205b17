"""Print what it costs to take a slide to a bag: wsi beside a plain loop, and what safety costs.

The slide is made here: 32,768 x 24,576 px (0.25 um/px, JPEG file tiles of 256 px, Q80, about 30 %
tissue; levels 1, 4, 16, 32), read as tiles of 256 px at 0.5 um/px. The encoder is nearly free (mean
colours of an 8 x 8 grid), so all that is measured is the way of the tiles.

- plain: one process; for each tile of the same grid OpenSlide's read_region of 512 px, PIL to RGB,
  resize to 256, torchvision's to-tensor and normalise, batches of 256, the same encoder, features
  appended to a chunked, resizable HDF5 file.
- one process: the same work without a child: overlay, outline and tiles drawn and written, then
  wsi.extract.embed.
- supervised: what `wsi preprocess --jobs 1` does: a child reads, tiles come by shared memory;
  claims, overlays and sidecars are written.

The ways run in turn; CPU seconds are those of this process and its children. Quick fingerprints and
publishing are timed apart, and so is the hash of the whole slide file, an option.
Goals: at least 5x the plain loop in tiles per CPU-second; isolation, publishing and quick
fingerprints at most 5 % of it.

    python benchmarks/extract.py [--rounds 3] [--tiles 1014]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import openslide
import psutil
import torch
from PIL import Image
from tissue import BIG, write_big
from torch import Tensor
from torchvision import transforms

from pipelines.account import Account
from pipelines.console import Console
from pipelines.encoding import Encoding
from pipelines.extraction import Extraction
from pipelines.overlay import write_located
from pipelines.quarantine import Quarantine
from pipelines.queue import Queue
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Target, Work
from pipelines.survey import survey_one
from pipelines.tilecounts import TileCount
from wsi.bags.h5 import H5Store
from wsi.claims import Claims
from wsi.encoders import Encoder, EncoderInfo
from wsi.extract import Recipe, embed, locate, make_recipe
from wsi.files import sampled_fingerprint, sha256_file
from wsi.pixels import PixelPlan
from wsi.slides import SlideFile, open_slide
from wsi.specs import Config
from wsi.supervision import Crew

GRID = 8
BATCH = 256
PLAIN_MS = 10.0  # per tile: what CLAM and TRIDENT were measured to take on such a slide


class NearlyFree(Encoder):
    """Mean colours of an 8 x 8 grid of a tile: (B, 192)."""

    info = EncoderInfo("nearly-free", 3 * GRID**2, 256, 0.5, "none", "Apache-2.0", False, "builtin")
    fingerprint = "nearly-free"

    def _embed(self, tiles: Tensor) -> Tensor:
        b, h, w, _ = tiles.shape
        rows = tiles[:, h // 16 :: h // GRID, w // 16 :: w // GRID]
        return rows.reshape(b, -1).float()

    def _input(self, tile_px: int) -> tuple[int, int]:
        return tile_px, tile_px


def main() -> None:
    """Write the slide, run the ways in turn, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.rounds)


def compare(folder: Path, rounds: int) -> None:
    """Time the ways on one slide."""
    path = folder / "slide.tif"
    write_big(path, BIG, (1, 4, 16, 32))
    config, encoder = Config(), NearlyFree()
    recipe = make_recipe(config, encoder)
    item = survey_one(SlideFile("slide", path), config.slides)
    with open_slide(path) as slide:
        corners = locate(slide, config.tissue, recipe.tiling).grid.xy0
    with Crew(1) as crew:
        supervised(folder / "warm", [item], recipe, encoder, crew)
        ways: dict[str, Callable[[Path], None]] = {
            "plain": lambda out: plain(path, corners, encoder, out),
            "one process": lambda out: in_one_process(path, recipe, encoder, out),
            "supervised": lambda out: supervised(out, [item], recipe, encoder, crew),
        }
        all_cpu, wall = timed(ways, folder, rounds)
    cpu = {name: statistics.median(seconds) for name, seconds in all_cpu.items()}
    n = len(corners)
    print(f"{n} tiles of 256 px at 0.5 um/px; medians of {rounds} rounds in turn")
    for name in ways:
        ms = 1e3 * cpu[name] / n
        print(f"{name:12}  {ms:6.2f} CPU-ms/tile  {n / wall[name]:7.0f} tiles/s wall")
    print(f"supervised: {cpu['plain'] / cpu['supervised']:.1f}x the plain loop per CPU-second")
    print(f"plain loop: {1e3 * cpu['plain'] / n:.1f} ms/tile; CLAM and TRIDENT took {PLAIN_MS:g}")
    # Clocks of other processes tick in hundredths of a second, so all rounds are added up.
    safety = sum(all_cpu["supervised"]) / sum(all_cpu["one process"]) - 1
    print(f"isolation (child, shared memory, claims, account): {safety:+.1%} of one process")
    quick, whole = cost(sampled_fingerprint, path), cost(sha256_file, path)
    publishing = cost(lambda p: publish(folder / "p", n, recipe, item), path)
    total = cpu["supervised"]
    print(f"quick fingerprint {quick / total:.2%}, publishing a bag {publishing / total:.2%}")
    print(f"hash of the whole slide file, an option: {whole / total:.1%}")


def plain(path: Path, corners: np.ndarray, encoder: Encoder, out: Path) -> None:
    """Read, resize, normalise and encode tile by tile, as most scripts do."""
    to_tensor = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    out.mkdir()
    with openslide.OpenSlide(path) as slide, h5py.File(out / "slide.h5", "w") as file:
        batch: list[Tensor] = []
        for k, (x, y) in enumerate(corners.tolist()):
            region = slide.read_region((x, y), 0, (512, 512)).convert("RGB")
            batch.append(to_tensor(region.resize((256, 256), Image.Resampling.BILINEAR)))
            if len(batch) == BATCH or k == len(corners) - 1:
                tiles = torch.stack(batch).permute(0, 2, 3, 1)
                features = encoder._embed(tiles).numpy()
                append(file, "features", features)
                append(file, "coords", corners[k + 1 - len(batch) : k + 1])
                batch = []


def append(file: h5py.File, name: str, rows: np.ndarray) -> None:
    """Append rows to a dataset that grows."""
    if name not in file:
        file.create_dataset(
            name, data=rows, maxshape=(None, rows.shape[1]), chunks=(32, rows.shape[1])
        )
        return
    data = file[name]
    assert isinstance(data, h5py.Dataset)
    data.resize(len(data) + len(rows), axis=0)
    data[-len(rows) :] = rows


def in_one_process(path: Path, recipe: Recipe, encoder: Encoder, out: Path) -> None:
    """Take the slide to a bag, and to what people look at, without a child."""
    with open_slide(path, "slide") as slide:
        located = locate(slide, recipe.tissue, recipe.tiling)
        write_located(out, slide, recipe.tissue, located, recipe.tiling)
        embed(slide, located, encoder, recipe, H5Store(out / "bags"))


def supervised(
    out: Path,
    items: Sequence[Surveyed],
    recipe: Recipe,
    encoder: Encoder,
    crew: Crew,
    device: str = "cpu",
) -> dict[str, float]:
    """Take slides to bags as the program does; return seconds at work by kind."""
    target = Target(recipe, out / "bags")
    work = Work(Config(), PixelPlan(), recipe.tiling, (target,), out, "bags")
    console = Console(hushed=True)
    account = Account(items, Quarantine(out), console)
    with (
        Claims(out / "claims") as claims,
        Encoding([encoder], device, 1) as encoding,
        console.progress("tiles", 0) as track,
    ):
        queue = Queue(work, items, account, claims, None, retry=False, redo=False)
        count = TileCount(track, len(items))
        engine = Extraction(work, crew, [encoder], encoding, count, lambda: None)
        for job, outcome in engine.outcomes(queue):
            if outcome.state != "done":
                raise SystemExit(f"a slide ended as {outcome}")
            account.add(job.item, outcome)
            queue.release(job.item)
    return account.spent


def publish(out: Path, n: int, recipe: Recipe, item: Surveyed) -> None:
    """Store a bag of as many tiles."""
    if item.info is None:
        return
    store = H5Store(out)
    made = recipe.provenance(item.info)
    with store.writer("slide", n, 3 * GRID**2, made) as writer:
        rows = np.zeros((n, 3 * GRID**2), np.float32)
        writer.append(rows, np.zeros((n, 2), np.int32), np.ones(n, np.float32))


def timed(
    ways: dict[str, Callable[[Path], None]], folder: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the CPU seconds of each round, and the median wall seconds, of ways run in turn."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds):
        for name, way in ways.items():
            before, clock = cpu_seconds(), time.perf_counter()
            way(folder / f"{name}-{k}")
            wall[name].append(time.perf_counter() - clock)
            cpu[name].append(cpu_seconds() - before)
    return cpu, {name: statistics.median(seconds) for name, seconds in wall.items()}


def cpu_seconds() -> float:
    """Return what this process and its living children have used."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def cost(call: Callable[[Path], object], path: Path) -> float:
    """Return the median CPU seconds of a call."""
    seconds = []
    for _ in range(5):
        before = time.process_time()
        call(path)
        seconds.append(time.process_time() - before)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
