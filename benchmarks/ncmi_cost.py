"""Print what a training step with NCMI costs beside one with cross-entropy.

Gated ABMIL on bags of 2,000 tiles x 1,024 features, one thread, one process; the two steps
alternate, so that a busy machine slows both. Goal: a ratio of at most 1.05.

    python benchmarks/ncmi_cost.py [--classes 4] [--tiles 2000] [--rounds 40]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from wsi.data import BagBatch, pack
from wsi.specs import Config, FitSpec
from wsi.training.model import build
from wsi.training.optimiser import adamw

DIM = 1024


def stepper(objective: str, classes: int) -> Callable[[BagBatch], None]:
    """Return a function that does one whole training step on a batch."""
    config = Config.model_validate({"objective": objective})
    model = build(config, DIM, [str(c) for c in range(classes)], [5] * classes)
    optimizer = adamw(model.parameters(), FitSpec())
    y = torch.ones(1, dtype=torch.int64)

    def step(batch: BagBatch) -> None:
        output = model(batch)
        optimizer.zero_grad()
        model.objective(output, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.objective.after_step(output, y)

    return step


def main() -> None:
    """Time both steps alternately and print the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiles = np.random.default_rng(0).normal(size=(options.tiles, DIM)).astype(np.float16)
    batch = pack([(tiles, None, "slide", None)])
    steps = {name: stepper(name, options.classes) for name in ("ce", "ncmi")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            started = time.process_time()
            step(batch)
            seconds[name].append(time.process_time() - started)
    ce, ncmi = (np.array(seconds[name][3:]) for name in ("ce", "ncmi"))  # the first ones warm up
    print(f"ce    {np.median(ce) * 1e3:7.2f} ms CPU per step of {options.tiles} tiles")
    print(f"ncmi  {np.median(ncmi) * 1e3:7.2f} ms")
    print(f"ratio {np.median(ncmi) / np.median(ce):.3f} (paired {np.median(ncmi / ce):.3f})")


if __name__ == "__main__":
    main()
