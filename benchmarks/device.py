"""Print how busy slides keep a GPU: tiles per second, its busy share, and the cores that takes.

Slides as in benchmarks/extract.py, several names of one; random weights. "alone" is the encoder on
tiles that lie in memory already: the limit. "slides" is the whole way of `wsi preprocess --jobs N
--device cuda`. The busy share is nvidia-smi's, sampled while slides are read.

    python benchmarks/device.py [--device cuda] [--jobs 12] [--slides 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch
from encode import tiles
from extract import cpu_seconds, supervised
from tissue import BIG, write_big

from pipelines.survey import survey_one
from wsi.encoders import Encoder, load_encoder
from wsi.extract import make_recipe
from wsi.slides import SlideFile
from wsi.specs import Component, Config
from wsi.supervision import Crew

ENCODERS = ("timm:vit_large_patch16_224.augreg_in21k", "timm:resnet50.tv_in1k", "resnet50")
BATCH = 256
ALONE_S = 5.0


class Busy:
    """Samples the busy share of the GPU in the background."""

    def __init__(self) -> None:
        self.shares: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        ask = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._end.wait(0.25):
            found = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
            if found.strip().isdecimal():
                self.shares.append(int(found))

    def __str__(self) -> str:
        middle = self.shares[2:-2] or self.shares
        return f"{statistics.mean(middle):.0f} %" if middle else "unknown"


def main() -> None:
    """Write the slides, then measure each encoder alone and fed by slides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    options = parser.parse_args()
    if options.device != "cpu":
        print(torch.cuda.get_device_name(0), "torch", torch.__version__, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), options.slides)
        config = Config()
        items = [survey_one(SlideFile(path.stem, path), config.slides) for path in paths]
        with Crew(options.jobs) as crew:
            for name in options.encoders:
                component = Component.model_validate({"name": name, "weights": "random"})
                encoder = load_encoder(component, options.device)
                alone = limit(encoder, options.device)
                spec = config.tiling.model_copy(update={"mpp": 0.5, "tile_px": 256})
                recipe = make_recipe(config.model_copy(update={"tiling": spec}), encoder)
                supervised(
                    Path(folder) / f"w{name}", items[:1], recipe, encoder, crew, options.device
                )
                before, clock = cpu_seconds(), time.perf_counter()
                with Busy() as busy:
                    out = Path(folder) / name.replace(":", "-")
                    spent = supervised(out, items, recipe, encoder, crew, options.device)
                wall, cpu = time.perf_counter() - clock, cpu_seconds() - before
                n = sum(len_of(path) for path in (out / "bags").glob("*.json"))
                where = ", ".join(f"{k} {s:.1f}" for k, s in spent.items() if s >= 0.05)
                print(
                    f"{name:42} {encoder.describe()['compute']}  alone {alone:6.0f} tiles/s  "
                    f"slides {n / wall:6.0f} tiles/s ({n} tiles, {n / wall / alone:.0%} of alone)  "
                    f"busy {busy}  {cpu / wall:.1f} cores\n    seconds at work: {where}",
                    flush=True,
                )


def written(folder: Path, n: int) -> list[Path]:
    """Return n slides of the same content."""
    first = folder / "0.tif"
    write_big(first, BIG, (1, 4, 16, 32))
    paths = [first, *(folder / f"{k}.tif" for k in range(1, n))]
    for path in paths[1:]:
        path.hardlink_to(first)
    return paths


def len_of(sidecar: Path) -> int:
    """Return the tiles of a bag."""
    return json.loads(sidecar.read_text())["n"]


def limit(encoder: Encoder, device: str) -> float:
    """Return tiles per second on tiles in memory."""
    batch = tiles(BATCH, 256)
    encoder.embed(batch).cpu()
    n, clock = 0, time.perf_counter()
    while time.perf_counter() - clock < ALONE_S:
        encoder.embed(batch).cpu()
        n += len(batch)
    return n / (time.perf_counter() - clock)


if __name__ == "__main__":
    main()
