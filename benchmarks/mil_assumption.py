"""Print which aggregators take a bag for positive because something else is missing.

A bag is positive when it holds one tile of the concept. In training every negative bag also holds
a tile of another kind, which no positive bag has: its absence tells the classes apart as well as
the concept does, and is wrong by the assumption of multiple-instance learning. Each aggregator is
trained on such bags and then ranks new ones:

* alike: as in training;
* bare: without the other kind; with the share of negatives that are called positive;
* swapped: the other kind in the positive bags. A model that goes by the concept alone keeps its
  AUC; one that goes by absence falls to .5 and below.

    python -m benchmarks.mil_assumption [--seeds 3] [--steps 250] [--aggregators abmil max]

Source: after the single-concept test of Raff & Holt 2023, *Reproducibility in multiple instance
learning: a case for algorithmic unit tests*, arXiv 2310.17867; the features are ours.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from wsi.aggregators import AGGREGATORS
from wsi.aggregators.base import Aggregator
from wsi.data import BagBatch, pack

DIM = 8
BAGS = 200
CONCEPT, OTHER = 0, 1  # features by which the two kinds of tiles stand out
SHIFT = 5.0  # in standard deviations
POSITIVE, NEGATIVE, NOWHERE = 1, 0, None


def corners(n: int) -> np.ndarray:
    """Return (n, 2): where tiles lie side by side, in no relation to what they are."""
    side = int(np.ceil(np.sqrt(n)))
    return np.stack([np.arange(n) % side, np.arange(n) // side], axis=1) * 256


def bags(
    rng: np.random.Generator, count: int, other_in: int | None
) -> list[tuple[np.ndarray, int, str, np.ndarray]]:
    """Return bags of 6 to 19 tiles, half of them positive, with the other kind in one class."""
    made = []
    for i in range(count):
        y, n = i % 2, int(rng.integers(6, 20))
        x = rng.normal(size=(n, DIM))
        if y == POSITIVE:
            x[0, CONCEPT] += SHIFT
        if y == other_in:
            x[1, OTHER] += SHIFT
        x = x[rng.permutation(n)]
        made.append((x, y, str(i), corners(n)))
    return made


def trained(name: str, seed: int, steps: int) -> Aggregator:
    """Return a narrow aggregator, trained with cross-entropy and its own loss."""
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"topk": {"k": 1}}.get(name, {})
    if "hidden" in AGGREGATORS.settings(name):
        settings["hidden"] = 16
    torch.manual_seed(seed)
    model = AGGREGATORS.load(name)(DIM, 2, **settings).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    known = bags(rng, BAGS, NEGATIVE)
    for _ in range(steps):
        batch: Any = pack([known[i] for i in rng.permutation(BAGS)[:32]])
        output = model(batch)
        loss = torch.nn.functional.cross_entropy(output.logits, batch.y)
        if output.aux_loss is not None:
            loss = loss + output.aux_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def margin(model: Aggregator, batch: BagBatch) -> np.ndarray:
    """Return (B,): by how much the positive class leads."""
    packed: Any = batch
    with torch.no_grad():
        logits = model(packed).logits
    return (logits[:, 1] - logits[:, 0]).numpy()


def figures(model: Aggregator, seed: int) -> dict[str, float]:
    """Return the AUC on new bags of each kind, and the bare negatives called positive."""
    rng = np.random.default_rng([seed, 1])
    found = {}
    for kind, other_in in (("alike", NEGATIVE), ("bare", NOWHERE), ("swapped", POSITIVE)):
        new = bags(rng, 2 * BAGS, other_in)
        y, lead = np.array([bag[1] for bag in new]), margin(model, pack(new))
        found[kind] = float(roc_auc_score(y, lead))
        if kind == "bare":
            found["false"] = float((lead[y == NEGATIVE] > 0).mean())
    return found


def table(names: list[str], seeds: int, steps: int) -> str:
    """Return one row per aggregator: means over seeds, and the range of the swapped AUC."""
    rows = [
        "| aggregator | alike | bare | bare negatives called positive | swapped (range) |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        found = [figures(trained(name, seed, steps), seed) for seed in range(seeds)]
        mean = {key: np.mean([f[key] for f in found]) for key in found[0]}
        swapped = [f["swapped"] for f in found]
        rows.append(
            f"| `{name}` | {mean['alike']:.2f} | {mean['bare']:.2f} | {mean['false']:.0%} | "
            f"{mean['swapped']:.2f} ({min(swapped):.2f} to {max(swapped):.2f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--aggregators", nargs="*", default=AGGREGATORS.names())
    args = parser.parse_args()
    print(table(args.aggregators, args.seeds, args.steps))


if __name__ == "__main__":
    main()
