"""Print what an epoch of training costs: ours beside a loop of CLAM's shape, and beside its limit.

Parts, each an `--only`:

long        bags of about 2,200 tiles x 1,024 features; goal: 1.8x the CLAM-shaped epoch in bf16
            where the processor has it, 1.0x in fp32
short       bags of about 86 tiles; goal: 2.5x in bf16, 2x in fp32
ncmi        NCMI beside cross-entropy, one long bag a step; goal: within 5 %
aggregators every registered aggregator, time per tile
processes   one process and as many as there are cores, by the clock; goal: 0.9 of their number

Ours is what `wsi train` does in an epoch: bags out of a memory-mapped packed cohort (float16),
gated attention of 512/256 with the loop's own `training_steps` and `take_step`. Beside it:

CLAM-shaped an epoch with the habits of CLAM's published loop, written for this comparison: a
            float32 .pt file per bag read by a DataLoader, one bag a step, gated attention of
            512/256 with dropout on tiles in three places, instance loss on the 8 most and least
            attended tiles, Adam, losses and errors read back at every step
one by one  plain torch on our maps and our model: one bag a step, fp32; goal: packing never
            below 0.9 of it
limit       the epoch's matrix products alone, of one bag at a time, forward and backward

One thread, one process, files in the page cache; the ways take turns, times are medians of CPU
time, ratios medians of paired ratios. Steps per epoch are printed: packing 16 bags into a step is
faster and makes a sixteenth of the updates.

    python benchmarks/train.py [--only long short] [--rounds 5] [--short]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wsi.aggregators import AGGREGATORS
from wsi.bags import Bag, PackedCohort, Provenance, create_store
from wsi.bags.packing import pack, packable
from wsi.bags.scores import SCORES
from wsi.data import BagDataset
from wsi.encoders.compute import cpu_has_bf16
from wsi.specs import Config
from wsi.training.model import Model, build
from wsi.training.optimiser import adamw
from wsi.training.precision import Precision, fabric_of
from wsi.training.step import steps_of, take_step

Way = Callable[[], object]
Ways = dict[str, Way]

DIM, HIDDEN, ATTENTION = 1024, 512, 256
LENGTHS = {"long": (2200, 16), "short": (86, 96)}  # mean tiles, bags
FEW = {"long": 4, "short": 24}  # bags with --short
PACKED = 16  # bags a step
GATED = {"name": "abmil", "hidden": HIDDEN, "attention_dim": ATTENTION}
PARTS = ("long", "short", "ncmi", "aggregators", "processes")


@dataclass(frozen=True)
class Material:
    """Bags in the two layouts, the same values in both.

    Attributes:
        data: ours, of the packed cohort, with labels.
        packed: the packed cohort.
        pt: folder of float32 .pt files.
        sizes: tiles per bag.
    """

    data: BagDataset
    packed: Path
    pt: Path
    sizes: tuple[int, ...]


def main() -> None:
    """Write the bags, run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="fewer bags: a look, not a figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            kind: written(Path(folder) / kind, mean, FEW[kind] if options.short else bags)
            for kind, (mean, bags) in LENGTHS.items()
        }
        for kind in LENGTHS:
            if kind in options.only:
                compare(kind, made[kind], options.rounds)
        if "ncmi" in options.only:
            ncmi(made["long"], options.rounds)
        if "aggregators" in options.only:
            aggregators(made["long"], options.rounds)
        if "processes" in options.only:
            many(made["long"], options.rounds)


# -- the bags ---------------------------------------------------------------------------------


def written(folder: Path, mean: int, bags: int) -> Material:
    """Write bags of lognormal lengths of about `mean` tiles, two classes in turn."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(0, 0.3, bags)
    sizes = tuple(np.maximum(1, np.rint(mean * drawn / drawn.mean())).astype(int).tolist())
    store, pt = create_store(folder / "bags", "h5"), folder / "pt"
    pt.mkdir()
    for i, n in enumerate(sizes):
        features = rng.standard_normal((n, DIM), np.float32).astype(np.float16)
        store.put(bag_of(f"s{i}", features))
        torch.save(torch.from_numpy(features).float(), pt / f"s{i}.pt")
    packed = folder / "packed"
    list(pack(store, packed, packable(store), whole=True))
    return Material(dataset(packed, bags), packed, pt, sizes)


def bag_of(slide_id: str, features: NDArray[np.float16]) -> Bag:
    """Return a bag as preprocessing makes it."""
    n = len(features)
    provenance = Provenance(
        slide={"fingerprint": slide_id},
        tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
        encoder={"name": "made", "fingerprint": "e" * 64},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float16",
    )
    scores = {name: np.zeros(n, np.float16) for name in SCORES}
    return Bag(
        slide_id, features, np.zeros((n, 2), np.int32), np.ones(n, np.float16), provenance, scores
    )


def dataset(packed: Path, bags: int) -> BagDataset:
    """Return the labelled bags of a packed cohort."""
    ids = [f"s{i}" for i in range(bags)]
    return BagDataset(PackedCohort(packed).read, ids, [i % 2 for i in range(bags)])


# -- ours -------------------------------------------------------------------------------------


def ours(
    data: BagDataset,
    bags_per_step: int,
    precision: Precision,
    aggregator: dict[str, object] = GATED,
    objective: str = "ce",
) -> Way:
    """Return what trains an epoch as `wsi train` does."""
    fit = {"bags_per_step": bags_per_step}
    config = Config.model_validate({"aggregator": aggregator, "objective": objective, "fit": fit})
    model, fabric = model_of(config, data), fabric_of("cpu", precision)
    optimizer = adamw(model.parameters(), config.fit)

    def epoch() -> Tensor:
        steps = steps_of(data, config.fit, fabric.device, 0, 0)
        figures = [take_step(fabric, model, optimizer, step, config.fit) for step in steps]
        return torch.stack(figures).double().cpu()

    return epoch


def model_of(config: Config, data: BagDataset) -> Model:
    """Return a model that has seen the training tiles, ready to train."""
    model = build(config, DIM, ["no", "yes"], [len(data), len(data)])
    model.standardise(data)
    return model.train()


# -- beside it --------------------------------------------------------------------------------


def one_by_one(data: BagDataset) -> Way:
    """Return plain torch: our model and maps, one bag a step, fp32, AdamW."""
    config = Config.model_validate({"aggregator": GATED})
    model = model_of(config, data)
    layers = model.aggregator
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5, fused=True)
    labels = torch.as_tensor(data.y)

    def epoch() -> None:
        for index in torch.randperm(len(data)).tolist():
            x = torch.from_numpy(np.asarray(data.tiles(index)[0]).astype(np.float32))
            x = (x - model.feature_mean) / model.feature_scale
            h = layers.embed(x)  # pyright: ignore
            pooled = layers.attention(h).softmax(0).T @ h  # pyright: ignore
            logits = layers.head(layers.dropout(pooled))  # pyright: ignore
            loss = nn.functional.cross_entropy(logits, labels[index : index + 1])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return epoch


class Shaped(nn.Module):
    """The shape of CLAM with a single attention branch (Lu et al. 2021, arXiv 2004.09666)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Dropout(0.25))
        self.tanh = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Tanh(), nn.Dropout(0.25))
        self.gate = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Sigmoid(), nn.Dropout(0.25))
        self.score = nn.Linear(ATTENTION, 1)
        self.head = nn.Linear(HIDDEN, 2)
        self.instances = nn.ModuleList(nn.Linear(HIDDEN, 2) for _ in range(2))

    def forward(self, x: Tensor, label: int, k: int = 8) -> tuple[Tensor, Tensor]:
        """Return logits (1, 2) and the loss of the most and least attended tiles."""
        h = self.embed(x)
        a = self.score(self.tanh(h) * self.gate(h)).T.softmax(1)
        k = min(k, len(x))
        chosen = torch.cat([h[a[0].topk(k).indices], h[(-a[0]).topk(k).indices]])
        told = torch.cat([torch.ones(k, dtype=torch.int64), torch.zeros(k, dtype=torch.int64)])
        return self.head(a @ h), nn.functional.cross_entropy(self.instances[label](chosen), told)


class Files(Dataset[tuple[Tensor, int]]):
    """A file per bag."""

    def __init__(self, material: Material) -> None:
        self._paths = [material.pt / f"s{i}.pt" for i in range(len(material.sizes))]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.load(self._paths[index], weights_only=True), index % 2


def clam_shaped(material: Material) -> Way:
    """Return what trains an epoch as CLAM's loop does."""
    model = Shaped().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)
    loader = DataLoader(Files(material), batch_size=1, shuffle=True, collate_fn=lambda one: one[0])

    def epoch() -> tuple[float, float]:
        total, errors = 0.0, 0.0
        for x, label in loader:
            y = torch.tensor([label])
            logits, instance_loss = model(x, label)
            loss = nn.functional.cross_entropy(logits, y)
            joined = 0.7 * loss + 0.3 * instance_loss
            total += joined.item()
            errors += 1.0 - logits.argmax(1).eq(y).float().mean().item()
            joined.backward()
            optimizer.step()
            optimizer.zero_grad()
        return total / len(loader), errors / len(loader)

    return epoch


def products(sizes: Sequence[int], dtype: torch.dtype) -> Way:
    """Return the matrix products of an epoch alone, bag by bag."""
    most = max(sizes)
    x, h, g = (torch.randn(most, width).to(dtype) for width in (DIM, HIDDEN, 2 * ATTENTION))
    first, second = torch.randn(DIM, HIDDEN).to(dtype), torch.randn(HIDDEN, 2 * ATTENTION).to(dtype)

    def epoch() -> None:
        for n in sizes:
            torch.mm(x[:n], first)
            torch.mm(h[:n], second)
            torch.mm(h[:n].T, g[:n])
            torch.mm(g[:n], second.T)
            torch.mm(x[:n].T, h[:n])

    return epoch


# -- comparing --------------------------------------------------------------------------------


def timed(ways: Ways, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Return CPU seconds (rounds,) of each way, in turn, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:
                taken[name].append(time.process_time() - started)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(times: dict[str, NDArray[np.float64]], slow: str, fast: str) -> float:
    """Return the median of paired ratios."""
    return float(np.median(times[slow] / times[fast]))


def precisions() -> Iterator[Precision]:
    """Yield fp32 and, where the processor has it, bf16."""
    yield "fp32"
    if cpu_has_bf16():
        yield "bf16"


def compare(kind: str, material: Material, rounds: int) -> None:
    """Print the epoch of each way."""
    bags, tiles = len(material.sizes), sum(material.sizes)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    ways: Ways = {"CLAM-shaped": clam_shaped(material), "one by one": one_by_one(material.data)}
    for precision in precisions():
        for step in (1, PACKED):
            ways[f"wsi {precision}, {step} a step"] = ours(material.data, step, precision)
        ways[f"limit {precision}"] = products(material.sizes, types[precision])
    times = timed(ways, rounds)
    print(f"{kind} bags: {bags} of {tiles / bags:.0f} tiles on average")
    print(f"  {'way':<22}{'steps':>6}{'ms/bag':>9}{'x CLAM':>8}{'x one':>7}{'of limit':>9}")
    for name, seconds in times.items():
        steps = 0 if "limit" in name else -(-bags // PACKED) if f"{PACKED} a" in name else bags
        bound = "limit bf16" if "bf16" in name else "limit fp32"
        print(
            f"  {name:<22}{steps or '-':>6}{np.median(seconds) * 1e3 / bags:9.2f}"
            f"{ratio(times, 'CLAM-shaped', name):8.2f}{ratio(times, 'one by one', name):7.2f}"
            f"{ratio(times, bound, name):9.2f}"
        )


def ncmi(material: Material, rounds: int) -> None:
    """Print NCMI's epoch beside cross-entropy's."""
    for precision in precisions():
        ways = {name: ours(material.data, 1, precision, objective=name) for name in ("ce", "ncmi")}
        times = timed(ways, 2 * rounds)
        print(f"ncmi beside ce, long bags, {precision}: {ratio(times, 'ncmi', 'ce'):.3f}x the time")


def aggregators(material: Material, rounds: int) -> None:
    """Print every registered aggregator with its defaults, in the fastest precision."""
    *_, precision = precisions()
    tiles = sum(material.sizes)
    print(f"aggregators, long bags, {precision}, 1 a step")
    ways = {
        name: ours(material.data, 1, precision, aggregator={"name": name})
        for name in AGGREGATORS.names()
    }
    times = timed(ways, max(1, rounds // 2))
    for name, seconds in times.items():
        shown = ratio(times, name, "abmil")
        print(f"  {name:<16}{np.median(seconds) * 1e6 / tiles:8.2f} us/tile{shown:8.2f} x abmil")


def many(material: Material, rounds: int) -> None:
    """Print what processes side by side reach, by the clock, over one packed cohort."""
    cores = len(os.sched_getaffinity(0))
    *_, precision = precisions()
    alone, together = [], []
    for _ in range(max(1, rounds // 2)):
        alone.append(epochs_per_second(material, precision, 1))
        together.append(epochs_per_second(material, precision, cores))
    gain = float(np.median(np.array(together) / np.array(alone)))
    print(
        f"{cores} processes on {cores} cores, long bags: {gain:.2f}x one, {gain / cores:.2f} each"
    )


def epochs_per_second(material: Material, precision: Precision, processes: int) -> float:
    """Return epochs per second of `processes` that begin together, each on one thread."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(processes), context.Queue()
    args = (material.packed, len(material.sizes), precision, ready, times)
    workers = [context.Process(target=work, args=args) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(rates))


def work(packed: Path, bags: int, precision: Precision, ready: object, times: object) -> None:
    """Train two epochs once all are ready, and tell the rate."""
    torch.set_num_threads(1)
    epoch, epochs = ours(dataset(packed, bags), 1, precision), 2
    epoch()
    ready.wait()  # pyright: ignore
    started = time.perf_counter()
    for _ in range(epochs):
        epoch()
    times.put(epochs / (time.perf_counter() - started))  # pyright: ignore


if __name__ == "__main__":
    main()
