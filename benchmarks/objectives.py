"""Print what objectives cost beside a cross-entropy head, in time and in memory.

Three questions, each a `--part`:

loss    loss and backward of every registered objective on given embeddings (those that want
        logits with their head), at bag sizes and at the size of an image classifier
naive   NCMI from features to their gradient, without projection, beside the broadcast form,
        which makes arrays of B x C x m, and beside a cross-entropy head
step    a whole training step of gated ABMIL on 2,000 tiles x 1,024 features with NCMI beside one
        with cross-entropy; goal: a ratio of at most 1.05

One thread, one process; what is compared alternates, so that a busy machine slows all alike, and
ratios are medians of paired ratios of CPU time. Memory is the most that lives at once of what the
step allocates, gradients included, by torch's profiler.

    python benchmarks/objectives.py [--part loss|naive|step] [--rounds 15] [--markdown]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reads these when torch is imported,
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and tells of every start and stop else

import torch
from torch import Tensor, nn

from wsi.data import BagBatch, pack
from wsi.objectives import OBJECTIVES
from wsi.objectives.simplex import log_scaled_nsf, project
from wsi.objectives.terms import centroid_sums, sample_form, terms_of_directions
from wsi.specs import Config, FitSpec
from wsi.training.model import build
from wsi.training.optimiser import adamw

Step = Callable[[], object]
BAG_SIZES = [(1, 4, 512, 32), (8, 4, 512, 32), (32, 4, 512, 32)]
IMAGE_SIZE = (128, 1000, 2048, 2048)  # B, C, E, m
TILES, DIM = 2000, 1024
WARM_UP = 3


def loss_step(name: str, B: int, C: int, E: int, m: int) -> Step | None:
    """Return a function doing loss and backward of an objective; None where it needs pairs."""
    torch.manual_seed(0)
    settings = {"m": m} if "m" in OBJECTIVES.settings(name) else {}
    objective = OBJECTIVES.load(name)(C, E, [2] * C, **settings)
    if objective.needs_pairs and B == 1:
        return None
    head = nn.Linear(E, C) if objective.wants == "logits" else None
    embedding = torch.randn(B, E, requires_grad=True)
    y = torch.arange(B) // 2 % C

    def step() -> None:
        output = SimpleNamespace(embedding=embedding, logits=head(embedding) if head else None)
        loss = objective(output, y)
        for part in (objective, head):
            if part is not None:
                part.zero_grad()
        embedding.grad = None
        loss.backward()

    return step


def terms_steps(B: int, C: int, m: int) -> dict[str, Step]:
    """Return NCMI from features f (B, m) to their gradient: ours, by broadcasting, and CE's."""
    torch.manual_seed(0)
    f = torch.randn(B, m, requires_grad=True)
    b = log_scaled_nsf(nn.functional.normalize(torch.randn(C, m)) * 5)
    q, y = b.exp() / m, torch.arange(B) % C
    prior = torch.full((C,), 1 / C)
    sums = centroid_sums(b, prior)  # once, as the objective does

    def ours() -> Tensor:
        terms = terms_of_directions(project(f, None, 0.2), b, y, prior, sums, nsf=True)
        return torch.autograd.grad(sample_form(*terms), f)[0]

    def naive() -> Tensor:
        s = torch.sigmoid(project(f, None, 0.2))
        p = s / s.sum(-1, keepdim=True)
        kl = (q[None] * (q[None].log() - p[:, None].log())).sum(-1)
        apart = (kl * (1 - nn.functional.one_hot(y, C))).sum(-1) / C
        own = (p * (p.log() - q[y].log())).sum(-1)
        return torch.autograd.grad(((own + 1e-10) / apart).mean(), f)[0]

    head = nn.Linear(m, C)

    def cross_entropy() -> tuple[Tensor, ...]:
        loss = nn.functional.cross_entropy(head(f), y)
        return torch.autograd.grad(loss, (f, *head.parameters()))

    return {"ours": ours, "broadcast": naive, "ce head": cross_entropy}


def training_step(objective: str, classes: int) -> Step:
    """Return a function that does one whole training step on one bag."""
    tiles = np.random.default_rng(0).normal(size=(TILES, DIM)).astype(np.float16)
    batch: BagBatch = pack([(tiles, None, "slide", None)])
    config = Config.model_validate({"objective": objective})
    model = build(config, DIM, [str(c) for c in range(classes)], [5] * classes)
    model.train()
    optimizer = adamw(model.parameters(), FitSpec())
    y = torch.ones(1, dtype=torch.int64)

    def step() -> None:
        output = model(batch)
        optimizer.zero_grad()
        model.objective(output, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.objective.after_step(output, y)

    return step


def milliseconds(steps: dict[str, Step], rounds: int, repeat: int = 1) -> dict[str, np.ndarray]:
    """Return CPU milliseconds per call (rounds,) of each, run alternately."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + WARM_UP):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(repeat):
                step()
            if number >= WARM_UP:
                taken[name].append((time.process_time() - started) * 1e3 / repeat)
    return {name: np.array(values) for name, values in taken.items()}


def peak_megabytes(step: Step) -> float:
    """Return the most memory that lives at once of what one call allocates."""
    step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # pyright: ignore
    found = [e for e in events if e.name() == "[memory]"]
    changes = sorted((e.start_ns(), e.nbytes()) for e in found)  # pyright: ignore
    return float(np.cumsum([change for _, change in changes]).max(initial=0)) / 2**20


def table(
    steps: dict[str, Step], base: str, rounds: int, *, repeat: int = 1, markdown: bool = False
) -> None:
    """Print time, memory and ratios to `base`."""
    times = milliseconds(steps, rounds, repeat)
    if markdown:
        print(f"\n| | ms | times {base} | MB |\n|---|---|---|---|")
    for name, step in steps.items():
        ratio = float(np.median(times[name] / times[base]))
        ms, mb = float(np.median(times[name])), peak_megabytes(step)
        if markdown:
            print(f"| {name} | {ms:.3f} | {ratio:.2f} | {mb:.2f} |")
        else:
            print(f"  {name:<18}{ms:9.3f} ms {ratio:7.2f} x {base} {mb:9.2f} MB")
    if markdown:
        print()


def losses(rounds: int, *, markdown: bool = False) -> None:
    """Print every registered objective at every size."""
    for B, C, E, m in [*BAG_SIZES, IMAGE_SIZE]:
        print(f"loss and backward, B {B}, C {C}, embedding {E}, m {m}")
        made = {name: loss_step(name, B, C, E, m) for name in OBJECTIVES.names()}
        steps = {name: step for name, step in made.items() if step is not None}
        table(steps, "ce", rounds, repeat=1 if C > 100 else 20, markdown=markdown)


def naive(rounds: int, *, markdown: bool = False) -> None:
    """Print NCMI beside the broadcast form, after checking that their gradients agree."""
    for B, C, m in [(8, 4, 32), (32, 4, 32), (IMAGE_SIZE[0], IMAGE_SIZE[1], IMAGE_SIZE[3])]:
        steps = terms_steps(B, C, m)
        ours, other = (steps[name]() for name in ("ours", "broadcast"))
        error = float((ours - other).abs().max() / other.abs().max())  # pyright: ignore
        print(f"NCMI from features, B {B}, C {C}, m {m} (gradients agree to {error:.0e})")
        few, repeat = (rounds, 20) if C < 100 else (3, 1)
        table(steps, "ours", few, repeat=repeat, markdown=markdown)


def training(rounds: int, classes: int, *, markdown: bool = False) -> None:
    """Print a whole step with each of the two."""
    print(f"training step, one bag of {TILES} tiles x {DIM}, gated ABMIL, C {classes}")
    steps = {name: training_step(name, classes) for name in ("ce", "ncmi")}
    table(steps, "ce", 3 * rounds, markdown=markdown)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["loss", "naive", "step"], action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.part or ["step", "loss", "naive"]
    if "step" in parts:
        training(options.rounds, options.classes, markdown=options.markdown)
    if "loss" in parts:
        losses(options.rounds, markdown=options.markdown)
    if "naive" in parts:
        naive(options.rounds, markdown=options.markdown)


if __name__ == "__main__":
    main()
