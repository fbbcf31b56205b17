"""Two processes on halves of a batch are one process on the whole of it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from wsi.objectives import OBJECTIVES
from wsi.objectives.cross_entropy import CrossEntropy
from wsi.objectives.ncmi import NCMI

STEPS, C, D, E = 5, 3, 5, 6
SETTINGS = {
    "sample": {},
    "ratio": {"form": "ratio"},
    "class_mean": {"centroids": "class_mean", "form": "ratio"},
    "learned": {"centroids": "learned", "centroid_lr": 0.5, "centroid_momentum": 0.9},
    "learned_ratio_ema": {
        "centroids": "learned",
        "centroid_lr": 0.5,
        "form": "ratio",
        "center": "ema",
        "center_momentum": 0.9,
    },
    "fixed_centre": {"center": "fixed"},
    "official": {"official": True, "center_momentum": 0.9},
}
MEANS = (
    *("ce", "pc_softmax", "cosine_pc", "cosine_ce", "ncmi_softmax", "ncmi_harmonic", "hybrid"),
    *("dot_regression", "focal", "square", "squentropy", "center"),
)
"""Objectives whose loss is a mean over bags."""


class Step(nn.Module):
    """A network and its objective, the loss as output: what is wrapped for several processes."""

    def __init__(self, objective) -> None:
        super().__init__()
        self.network = nn.Linear(D, E)
        self.head = nn.Linear(E, C)
        self.objective = objective

    def output(self, x):
        embedding = self.network(x)
        return SimpleNamespace(embedding=embedding, logits=self.head(embedding))

    def forward(self, x, y):
        output = self.output(x)
        return self.objective(output, y) + 0 * output.logits.sum()


def batch(step):
    g = torch.Generator().manual_seed(step)
    y = torch.tensor([0, 1, 0, 0, 2, 1, 0])[: 7 - step % 2]  # halves of unequal size and classes
    return torch.randn(len(y), D, generator=g, dtype=torch.float64), y


def built(name):
    torch.manual_seed(0)
    counts = [9, 3, 2]
    if name == "ce":
        return Step(CrossEntropy(C, E, counts, weight="balanced")).double()
    if name in MEANS:
        return Step(OBJECTIVES.load(name)(C, E, counts)).double()
    return Step(NCMI(C, E, counts, **SETTINGS[name])).double()


def trained(name, rows):
    """Return losses and the state after some steps on `rows` of every batch."""
    step = built(name)
    x, y = batch(0)
    step.objective.before_fit([(step.output(x[rows]), y[rows])])
    shared = distributed.is_initialized()
    wrapped = DistributedDataParallel(step) if shared else step
    optimizer = torch.optim.SGD(step.parameters(), lr=0.3)
    losses = []
    for number in range(STEPS):
        x, y = batch(number)
        loss = wrapped(x[rows], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            output = step.output(x[rows])
        step.objective.after_step(output, y[rows])
        losses.append(loss.item())
    return losses, {key: value.numpy() for key, value in step.state_dict().items()}


def process(rank, address, queue):
    # A file in place of a port: nothing to collide with.
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    rows = slice(0, 2) if rank == 0 else slice(2, None)
    for name in [*SETTINGS, *MEANS]:
        queue.put((rank, name, *trained(name, rows)))
    queue.close()
    queue.join_thread()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    address = f"file://{tmp_path_factory.mktemp('group') / 'meeting'}"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=process, args=(rank, address, queue)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=120) for _ in range(2 * len([*SETTINGS, *MEANS]))]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    return {(rank, name): (losses, state) for rank, name, losses, state in answers}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo by a file needs POSIX")
@pytest.mark.parametrize("name", [*SETTINGS, *MEANS])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_are_one_on_the_joined_batch(of_two, name, rank):
    losses, state = of_two[rank, name]
    alone, expected = trained(name, slice(None))
    np.testing.assert_allclose(losses, alone, rtol=1e-6)
    start = built(name).state_dict()
    assert any(not np.array_equal(value, start[key].numpy()) for key, value in expected.items())
    for key, value in expected.items():
        size = max(np.abs(value).max(), 1e-300)
        np.testing.assert_allclose(state[key], value, rtol=0, atol=1e-6 * size, err_msg=key)
