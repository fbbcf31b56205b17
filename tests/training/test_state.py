"""A fit that ends at any epoch and goes on is, to the last bit, one that never ended.

The oracle is a fit that nobody interrupted. A fit that goes on gets a model of other initial
weights, so that what its state forgot to keep shows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from wsi.aggregators import AGGREGATORS
from wsi.data import from_arrays
from wsi.objectives import OBJECTIVES
from wsi.specs import Config
from wsi.training.loop import fit
from wsi.training.model import build
from wsi.training.state import FitState

D, CLASSES = 6, ("low", "mid", "high")
FIT = {"epochs": 4, "lr": 0.02, "bags_per_step": 5, "max_tiles": 5, "patience": 4}


class Ended(BaseException):
    """Stands in for the end of a process."""


def data(n, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    bags = [rng.normal(size=(k, D)) for k in rng.integers(2, 9, n)]
    for bag, c in zip(bags, y, strict=True):
        bag[:, c] += 0.6
    return from_arrays({f"{seed}-{k}": bag.astype(np.float32) for k, bag in enumerate(bags)}, y)


def macro_auc(y, p):
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in range(3)]))


def config_of(aggregator="abmil", objective="ce", **spec):
    described = {"aggregator": aggregator, "objective": objective, "fit": FIT | spec}
    return Config.model_validate(described)


def trained(config, path, *, end_at=None, weights=0, val=True, said=None, seed=5):
    """Fit; with `end_at`, end after that epoch, before its state is kept."""
    model = build(config, D, CLASSES, [5, 5, 5], seed=weights)
    new = []

    def on_epoch(row):
        new.append(row["epoch"])
        if row["epoch"] == end_at:
            raise Ended

    state = None
    if path is not None:
        say = [].append if said is None else said.append
        state = FitState(path, every_s=0, share=math.inf, say=say)
    result = fit(
        model,
        data(15, 1),
        data(9, 2) if val else None,
        config.fit,
        seed=seed,
        score=macro_auc,
        on_epoch=on_epoch,
        state=state,
    )
    return model, result, new


def content(model):
    return {name: (t.dtype, t.numpy().tobytes()) for name, t in model.state_dict().items()}


def rows(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def assert_same(one, other):
    assert rows(one[1]) == rows(other[1])
    assert (one[1].best_epoch, one[1].monitor) == (other[1].best_epoch, other[1].monitor)
    assert content(one[0]) == content(other[0])


def ended_and_resumed(config, path, *ends, **more):
    for k, end in enumerate(ends):
        with pytest.raises(Ended):
            trained(config, path, end_at=end, weights=k, **more)
    return trained(config, path, weights=len(ends), **more)


FAST = ("ce", "ncmi", "hybrid", "supcon")
"""Objectives of every kind of state; the others are tested with `-m slow`."""

NCMI = [
    {"name": "ncmi", "centroids": "learned", "centroid_lr": 0.01, "center": "ema"},
    {"name": "ncmi", "centroids": "class_mean", "center": "fixed"},
    {"name": "ncmi", "centroids": "learned", "centroid_lr": 0.001, "predict": "auto"},
    {"name": "ncmi", "official": True},
]


@pytest.mark.parametrize(
    "objective",
    [
        *(
            name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
            for name in OBJECTIVES.names()
        ),
        *NCMI,
    ],
    ids=lambda o: o if isinstance(o, str) else "-".join(str(v) for v in o.values()),
)
def test_every_objective_goes_on_to_the_same_last_bit(tmp_path, objective):
    config = config_of({"name": "abmil", "hidden": 8, "dropout": 0.3}, objective)
    whole = trained(config, None)
    resumed = ended_and_resumed(config, tmp_path / "state.safetensors", 2)
    assert resumed[2][0] == 2
    assert_same(whole, resumed)


@pytest.mark.parametrize("aggregator", AGGREGATORS.names())
def test_every_aggregator_goes_on_to_the_same_last_bit(tmp_path, aggregator):
    placeless = {"position": "none"} if AGGREGATORS.load(aggregator).uses_coordinates else {}
    config = config_of({"name": aggregator, **placeless})
    whole = trained(config, None)
    resumed = ended_and_resumed(config, tmp_path / "state.safetensors", 1, 3)
    assert resumed[2][0] == 3
    assert_same(whole, resumed)


@pytest.mark.parametrize("end", range(1, FIT["epochs"]))
@pytest.mark.parametrize("val", [True, False], ids=["validated", "without validation"])
def test_any_epoch_may_be_the_last_one(tmp_path, end, val):
    config = config_of({"name": "abmil", "hidden": 8, "dropout": 0.5}, clip=None)
    whole = trained(config, None, val=val)
    resumed = ended_and_resumed(config, tmp_path / "state.safetensors", end, val=val)
    assert resumed[2] == list(range(end, FIT["epochs"]))
    assert_same(whole, resumed)


def test_a_fit_that_stopped_early_stays_stopped(tmp_path):
    config = config_of("mean", epochs=30, patience=2, lr=0.3)
    whole, path = trained(config, None), tmp_path / "state.safetensors"
    assert len(whole[1].history) < 30
    assert_same(whole, trained(config, path))
    again = trained(config, path, weights=1)  # it ended after its last epoch was kept
    assert again[2] == []
    assert_same(whole, again)


# -- what is passed over -----------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """The state of a fit that ended in its fourth epoch."""
    path = tmp_path / "state.safetensors"
    with pytest.raises(Ended):
        trained(config_of("mean"), path, end_at=3)
    return path


def begun_anew(path, config=None, **more):
    said = []
    config = config or config_of("mean")
    model, result, new = trained(config, path, said=said, weights=0, **more)
    assert new[0] == 0
    assert_same(trained(config, None, **more), (model, result))
    (line,) = said
    assert str(path) in line
    assert "begins anew" in line
    return line


@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_anywhere_is_noticed(kept, place):
    content = bytearray(kept.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    kept.write_bytes(bytes(content))
    assert "is damaged" in begun_anew(kept)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_cut_file_is_noticed(kept, share):
    content = kept.read_bytes()
    kept.write_bytes(content[: int(share * len(content))])
    assert "is damaged" in begun_anew(kept)


def test_a_file_of_something_else_is_noticed(kept):
    save_file({"weight": torch.zeros(3)}, kept)
    assert "is damaged" in begun_anew(kept)


@pytest.mark.parametrize(
    ("config", "more", "told"),
    [
        (config_of("mean", lr=0.01), {}, "fit"),
        (config_of("mean", "focal"), {}, "model"),
        (config_of({"name": "mean", "dropout": 0.5}), {}, "model"),
        (config_of("mean"), {"seed": 6}, "seed"),
        (config_of("mean"), {"val": False}, "validation slides"),
    ],
)
def test_the_state_of_another_fit_is_named_and_passed_over(kept, config, more, told):
    assert f"is of another fit ({told})" in begun_anew(kept, config, **more)


def test_another_version_is_named_and_passed_over(kept, monkeypatch):
    monkeypatch.setattr("wsi.__version__", "0.0.9")
    assert "is of another fit (wsi)" in begun_anew(kept)


def test_seeds_that_were_added_change_nothing(kept):
    _, _, new = trained(config_of("mean", seeds=5), kept)
    assert new[0] == 3


def test_a_state_that_does_not_fit_the_model_leaves_it_untouched(kept, monkeypatch):
    # A package of one's own, say, whose aggregator was edited under the same name.
    before = AGGREGATORS.load("mean").__init__

    def wider(self, dim, n_classes, *, hidden=512, dropout=0.25):
        before(self, dim, n_classes, hidden=hidden + 1, dropout=dropout)

    monkeypatch.setattr(AGGREGATORS.load("mean"), "__init__", wider)
    assert "does not fit the model" in begun_anew(kept)


# -- the file ----------------------------------------------------------------------------------


def test_the_file_holds_tensors_and_json_alone(kept):
    tensors = load_file(kept)
    assert {name.split("/")[0] for name in tensors} == {"model", "optimizer", "best", "random"}
    with safe_open(kept, framework="pt") as handle:
        described = json.loads(handle.metadata()["wsi"])
    assert [row["epoch"] for row in described["history"]] == [0, 1, 2]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


class Counted:
    """A part that counts how often its state is taken."""

    def __init__(self):
        self.n = 0

    def state_dict(self):
        self.n += 1
        return {"x": torch.zeros(4)}

    def load_state_dict(self, state_dict):
        raise AssertionError("there is no state yet")


class Clock:
    """Time that passes when told; `fsync` takes a second of it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def kept_over(tmp_path, monkeypatch, epoch_s, epochs, save_s):
    """Return how often the state is kept over epochs of a length, and the share of time it took."""
    clock, part = Clock(), Counted()
    monkeypatch.setattr("wsi.training.state.time", clock)

    def saving(tensors, path, metadata):
        clock.now += save_s
        Path(path).write_bytes(b"x")

    monkeypatch.setattr("wsi.training.state.save_file", saving)
    state = FitState(tmp_path / "state.safetensors")
    state.restore({"part": part}, {})
    for epoch in range(epochs):
        clock.now += epoch_s
        state.offer({"part": part}, [{"epoch": epoch}])
    return part.n, part.n * save_s / (epochs * epoch_s)


def test_long_epochs_are_kept_each(tmp_path, monkeypatch):
    n, _ = kept_over(tmp_path, monkeypatch, epoch_s=10, epochs=8, save_s=0.05)
    assert n == 8


def test_short_epochs_are_kept_every_few_seconds(tmp_path, monkeypatch):
    n, _ = kept_over(tmp_path, monkeypatch, epoch_s=0.1, epochs=200, save_s=0.01)
    assert 4 <= n <= 7


@pytest.mark.parametrize("save_s", [0.3, 2.0])
def test_slow_disks_take_a_small_share_of_the_time(tmp_path, monkeypatch, save_s):
    n, share = kept_over(tmp_path, monkeypatch, epoch_s=5, epochs=200, save_s=save_s)
    assert n > 5
    assert share < 0.021
