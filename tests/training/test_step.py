"""A step cut into pieces against plain autograd over the whole of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsi.aggregators import AGGREGATORS
from wsi.aggregators.base import Output
from wsi.aggregators.pooling import MeanPooling
from wsi.data import BagBatch, from_arrays, pack
from wsi.objectives import OBJECTIVES
from wsi.specs import Config, FitSpec
from wsi.training.model import Model, ModelCard, build
from wsi.training.optimiser import adamw
from wsi.training.precision import fabric_of
from wsi.training.step import clipped, joined_output, steps_of, take_step

D, C = 8, 3
SIZES = (3, 9, 1, 4, 6, 2, 5)
Y = (0, 1, 2, 0, 1, 2, 0)
HOST = torch.device("cpu")


def bags(seed=0):
    rng = np.random.default_rng(seed)
    tiles = [rng.normal(size=(n, D)).astype(np.float32) for n in SIZES]
    return [(x, y, f"s{i}", None) for i, (x, y) in enumerate(zip(tiles, Y, strict=True))]


def cut(at):
    """Return the bags as pieces that begin at the numbers given."""
    all_of_them = bags()
    edges = [0, *at, len(all_of_them)]
    return [pack(all_of_them[a:b]) for a, b in pairwise(edges)]


def model_of(objective="ce", aggregator="abmil", **params):
    sized = {"hidden": 8, "attention_dim": 4} if aggregator == "abmil" else {}
    config = Config.model_validate(
        {
            "aggregator": {"name": aggregator, **sized, **params},
            "objective": objective,
            "fit": {"bags_per_step": len(Y)},
        }
    )
    return build(config, D, ["a", "b", "c"], [3, 2, 2])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    held = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return {name: gradient.clone() for name, gradient in held}


def in_pieces(model, pieces, most_tiles):
    output = joined_output(fabric_of("cpu", "fp32"), model, pieces, most_tiles)
    loss = model.objective(output, torch.tensor(Y))
    return loss + (0 if output.aux_loss is None else output.aux_loss)


@pytest.mark.parametrize("most_tiles", [1, 12, 1000], ids=["one kept", "some kept", "all kept"])
@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_the_gradient_of_a_step_is_the_same_however_it_is_cut(name, most_tiles):
    model = model_of(name, dropout=0.0).double().train()
    batch = pack(bags())
    batch = replace(batch, x=batch.x.double())
    with torch.no_grad():
        model.objective.before_fit(iter([(model.eval()(batch), torch.tensor(Y))]))
    model.train()
    # The whole, written out: aggregator, objective, autograd.
    whole = model.objective(model.aggregator(batch), torch.tensor(Y))
    expected = gradients(model, whole)
    loss = in_pieces(model, cut([1, 3, 6]), most_tiles)
    found = gradients(model, loss)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_pieces_computed_twice_have_the_random_numbers_of_the_first_time(name):
    placeless = {"position": "none"} if AGGREGATORS.load(name).uses_coordinates else {}
    model, pieces, seen = model_of(aggregator=name, **placeless).train(), cut([1, 3, 6]), []
    for most_tiles in (1000, 1):
        torch.manual_seed(3)
        seen.append(gradients(model, in_pieces(model, pieces, most_tiles)))
        after = torch.rand(1)
        seen[-1]["next number"] = after
    for key, gradient in seen[0].items():
        torch.testing.assert_close(seen[1][key], gradient, rtol=1e-5, atol=1e-6)
    torch.manual_seed(4)
    other = gradients(model, in_pieces(model, pieces, 1))
    assert any(not torch.allclose(other[k], g) for k, g in seen[0].items() if k in other)


class Nagging(MeanPooling):
    """Mean pooling with an auxiliary loss that is a mean over bags."""

    def aggregate(self, batch):
        output = super().aggregate(batch)
        aux = output.embedding.square().sum(1).mean()
        return Output(output.embedding, output.logits, aux_loss=aux)


@pytest.mark.parametrize("most_tiles", [1, 1000])
def test_an_auxiliary_loss_counts_every_bag_alike(most_tiles):
    objective = OBJECTIVES.load("ce")(C, 8, [3, 2, 2])
    aggregator = Nagging(D, C, hidden=8, dropout=0.0)
    model = Model(ModelCard(D, ("a", "b", "c"), (3, 2, 2), "mean", "ce"), aggregator, objective)
    output = joined_output(fabric_of("cpu", "fp32"), model, cut([1, 3]), most_tiles)
    h = [torch.relu(aggregator.embed[0](torch.from_numpy(x))).mean(0) for x, *_ in bags()]
    expected = np.mean([vector.square().sum().item() for vector in h])
    assert output.aux_loss is not None
    assert output.aux_loss.item() == pytest.approx(expected, rel=1e-5)


def test_only_what_may_be_held_is_held():
    """Count the numbers that autograd keeps of a step, by torch's own hooks."""
    model, pieces = model_of(dropout=0.0).train(), cut([1, 2, 3, 4, 5, 6])
    kept = {}
    for most_tiles in (1000, 9, 1):
        held = []

        def note(tensor, held=held):
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            in_pieces(model, pieces, most_tiles)
        kept[most_tiles] = sum(held)
    assert kept[1] < kept[9] < kept[1000]


def test_pieces_hold_no_more_tiles_than_may_be_computed_at_once():
    data = from_arrays({s: x for x, _, s, _ in bags()}, Y)
    spec = FitSpec(bags_per_step=4, tiles_per_batch=8)
    steps = list(steps_of(data, spec, HOST, seed=0, epoch=0))
    assert [sum(len(piece.slide_ids) for piece in pieces) for pieces in steps] == [4, 3]
    for pieces in steps:
        assert all(len(piece.x) <= 8 or len(piece.slide_ids) == 1 for piece in pieces)
    assert sum(len(pieces) for pieces in steps) > 2


def test_a_budget_changes_no_training_step():
    data, after = from_arrays({s: x for x, _, s, _ in bags()}, Y), []
    for tiles in (1000, 5):
        spec = FitSpec(bags_per_step=4, tiles_per_batch=tiles, lr=0.01)
        model, fabric = model_of("supcon", dropout=0.0).train(), fabric_of("cpu", "fp32")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for pieces in steps_of(data, spec, HOST, seed=0, epoch=0):
            take_step(fabric, model, optimizer, pieces, spec)
        after.append([p.detach().clone() for p in model.parameters()])
    start = list(model_of("supcon", dropout=0.0).parameters())
    assert not all(torch.equal(a, b) for a, b in zip(after[0], start, strict=True))
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [None, 0.5, 100.0])
def test_clipping_is_torchs(limit):
    theirs = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 4)]
    mine = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 4, 2)]  # the last has no gradient
    for a, b in zip(theirs, mine, strict=False):
        a.grad = torch.arange(1.0, 1 + len(a))
        b.grad = a.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, float("inf") if limit is None else limit)
    assert float(clipped(mine, limit)) == pytest.approx(float(norm))
    for a, b in zip(theirs, mine, strict=False):
        torch.testing.assert_close(a.grad, b.grad)


# -- waiting for a device ---------------------------------------------------------------------


class Waiting(TorchDispatchMode):
    """Notes what would have the host wait for an accelerator: numbers read, sizes that depend."""

    READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [a for arg in args[1:] for a in (arg if isinstance(arg, list | tuple) else ())]
        by_mask = "index" in str(func) and any(
            isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks
        )
        if by_mask or str(func).startswith(self.READS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_number_that_is_read():
    with Waiting() as watch:
        bool(torch.ones(1) > 0)
        torch.ones(3)[torch.tensor([True, False, True])]
    assert len(watch.found) >= 2


def computed(model, batch):
    """Do what a device does of a step: forward, loss and backward."""
    output = model(batch)
    loss = model.objective(output, batch.y)
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    loss.backward()


@pytest.mark.parametrize("sizes", [(3, 9, 1), (2100, 1500)], ids=["laid", "bag by bag"])
@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_no_aggregator_reads_a_number_back_in_a_step(name, sizes):
    rng = np.random.default_rng(0)
    tiles = [rng.normal(size=(n, D)).astype(np.float32) for n in sizes]
    xy0 = [np.stack([256 * np.arange(n), np.zeros(n)], 1).astype(np.int32) for n in sizes]
    batch: BagBatch = pack([(x, i % C, f"s{i}", c) for i, (x, c) in enumerate(zip(tiles, xy0))])
    model = model_of(aggregator=name).train()
    computed(model, batch)  # what is made once may wait
    with Waiting() as watch:
        computed(model, batch)
    assert watch.found == []


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_no_objective_reads_a_number_back_in_a_step(name, monkeypatch):
    # On a CPU alone, one_hot looks at the classes it is given.
    numbered = lambda y, C: (y[..., None] == torch.arange(C)).long()  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "one_hot", numbered)
    model, batch = model_of(name).train(), pack(bags())
    with torch.no_grad():
        model.objective.before_fit(iter([(model.eval()(batch), batch.y)]))
    model.train()
    computed(model, batch)
    with Waiting() as watch:
        computed(model, batch)
        with torch.no_grad():
            model.objective.after_step(model(batch), batch.y)
    assert watch.found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("most_tiles", [1000, 5])
@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_a_whole_step_never_waits_for_the_device(name, most_tiles):
    data = from_arrays({s: x for x, _, s, _ in bags()}, Y)
    spec = FitSpec(bags_per_step=4, tiles_per_batch=most_tiles)
    fabric = fabric_of("cuda", "bf16")
    model = fabric.to_device(model_of(aggregator=name)).train()
    optimizer = adamw(model.parameters(), spec)
    steps = list(steps_of(data, spec, fabric.device, seed=0, epoch=0))
    for pieces in steps:
        take_step(fabric, model, optimizer, pieces, spec)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step(fabric, model, optimizer, steps[0], spec)
    finally:
        torch.cuda.set_sync_debug_mode("default")
