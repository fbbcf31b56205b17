"""Print what scoring a tile costs: CPU milliseconds at several tile sizes.

Each score alone, and all by `tile_scores`, which looks at low power once for pen and fold. One
thread; sizes and scores alternate, so that a busy machine slows all; medians are printed. Goal:
0.3 ms or less for each score of a tile of 256 px.

    python benchmarks/quality.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from wsi.quality import FoldRule, blur, fold, pen, tile_scores

MPP = 0.5
RULE = FoldRule(0.0, 8.0)
SCORES: dict[str, Callable[[np.ndarray], object]] = {
    "blur": blur,
    "pen": lambda tile: pen(tile, MPP),
    "fold": lambda tile: fold(tile, MPP, RULE),
    "all": lambda tile: tile_scores(tile[None], MPP, RULE),
}


def tissue(edge: int) -> np.ndarray:
    """Return a mottled pink tile (edge, edge, 3)."""
    field = np.random.default_rng(0).normal(size=(edge, edge, 1))
    smooth = cv2.GaussianBlur(field, (0, 0), 1.5)[..., None] * 4
    return np.clip(np.array([190, 110, 165]) + smooth * [12, 20, 10], 0, 255).astype(np.uint8)


def cost_ms(score: Callable[[np.ndarray], object], tile: np.ndarray, repeats: int) -> float:
    """Return CPU milliseconds of one call."""
    before = time.process_time()
    for _ in range(repeats):
        score(tile)
    return (time.process_time() - before) / repeats * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds the median is taken of")
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    tiles = {edge: tissue(edge) for edge in (128, 224, 256, 512)}
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for edge, tile in tiles.items():
            for name, score in SCORES.items():
                found.setdefault((edge, name), []).append(cost_ms(score, tile, 20))
    print("tile px   " + "".join(f"{name:>8}" for name in SCORES) + "   CPU ms per tile")
    for edge in tiles:
        row = [float(np.median(found[edge, name])) for name in SCORES]
        print(f"{edge:7}   " + "".join(f"{value:8.3f}" for value in row))


if __name__ == "__main__":
    main()
