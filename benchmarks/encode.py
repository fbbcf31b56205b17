"""Print what embedding costs: fp32 as timm builds it, beside what `compute=auto` makes of it.

Random weights of one seed; both take uint8 tiles of 256 px, so resizing and normalising count for
both. Batches alternate in one process and medians are printed, with CPU time on a CPU and wall
time, which waits for the device, elsewhere. Goal: 2x on a CPU with native bf16. The limit is what
such a CPU multiplies: twice the numbers per instruction for avx512_bf16.

    python benchmarks/encode.py [--encoders resnet50 timm:vit_small_patch16_224] [--rounds 5]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from wsi.encoders import Encoder, load_encoder
from wsi.specs import Component

WHOLE = "timm:resnet50.tv_in1k"  # with its fourth stage, 2048 wide


def tiles(n: int, px: int) -> torch.Tensor:
    """Return mottled tiles (n, px, px, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(60, 240, (n, 3, px // 8, px // 8))).float()
    fine = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bicubic")
    return fine.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def seconds(encoder: Encoder, batch: torch.Tensor, device: str) -> tuple[float, float]:
    """Return CPU and wall seconds of one batch."""
    cpu, wall = time.process_time(), time.perf_counter()
    encoder.embed(batch)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(name: str, device: str, rounds: int, size: int) -> None:
    """Print one line for an encoder."""
    component = Component.model_validate({"name": name, "weights": "random"})
    plain = load_encoder(component, device, compute="fp32")
    ours = load_encoder(component, device, compute="auto")
    batch = tiles(size, 256)
    exact, fast = plain.embed(batch), ours.embed(batch)
    cosine = torch.cosine_similarity(exact, fast)
    found = np.array([[seconds(e, batch, device) for e in (plain, ours)] for _ in range(rounds)])
    (cpu, wall) = np.median(found, axis=0).T
    used = wall if device.startswith("cuda") else cpu
    print(
        f"{name:32} {ours.describe()['compute']:>5}"
        f" {size / used[0]:9.1f} {size / used[1]:9.1f} {used[0] / used[1]:7.2f}x"
        f" {size / wall[0]:9.1f} {size / wall[1]:9.1f}   {cosine.min():.5f} {cosine.mean():.5f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet50", WHOLE])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="rounds the median is taken of")
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    if asked.device == "cpu":
        torch.set_num_threads(1)
    of = "wall" if asked.device.startswith("cuda") else "CPU"
    print(f"tiles per {of} second: fp32, ours, ratio; per second of wall time; cosine: least, mean")
    for name in asked.encoders:
        compare(name, asked.device, asked.rounds, asked.batch)


if __name__ == "__main__":
    main()
