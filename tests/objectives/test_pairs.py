"""What losses over pairs do where there is no pair."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsi.data import from_arrays
from wsi.errors import ConfigError, TrainingError
from wsi.objectives import OBJECTIVES, check_objective
from wsi.objectives.pairs import masked_mean
from wsi.specs import Config
from wsi.training import build, fit

PAIRS = [name for name in OBJECTIVES.names() if OBJECTIVES.load(name).needs_pairs]


def output(B, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        embedding=torch.randn(B, 6, generator=g), logits=torch.randn(B, 3, generator=g)
    )


def test_those_that_need_pairs_say_so():
    assert set(PAIRS) == {"opl", "supcon", "cmic"}


@pytest.mark.parametrize("name", PAIRS)
def test_one_bag_per_step_is_refused_before_work_starts(name):
    with pytest.raises(ConfigError, match=rf"objective '{name}' .* fit\.bags_per_step=1 — set"):
        check_objective(name, {}, 1)
    config = Config.model_validate({"objective": name, "fit": {"bags_per_step": 1}})
    with pytest.raises(ConfigError, match=r"set fit\.bags_per_step=8 or more"):
        build(config, 5, ["a", "b"], [3, 3])
    assert check_objective(name, {}, 2) == {}


@pytest.mark.parametrize("head", [name for name in PAIRS if name != "supcon"])
def test_a_hybrid_needs_the_pairs_of_its_head(head):
    with pytest.raises(ConfigError, match=r"'hybrid' .* set fit\.bags_per_step=8 or more"):
        check_objective("hybrid", {"head": head}, 1)
    assert check_objective("hybrid", {"head": head}, 2) == {"head": head}
    assert check_objective("hybrid", {"head": "focal"}, 1) == {"head": "focal"}
    assert check_objective("hybrid", {}, 1) == {}


@pytest.mark.parametrize("name", PAIRS)
def test_a_lone_bag_at_the_end_of_an_epoch_is_no_error(name):
    """5 bags in steps of 2: the last one is alone, and validation is bag by bag."""
    rng = np.random.default_rng(0)
    y = [0, 1, 0, 1, 0]
    bags = from_arrays({f"s{i}": rng.normal(size=(4, 5)).astype("f4") for i in range(5)}, y)
    config = Config.model_validate(
        {"objective": name, "aggregator": "mean", "fit": {"bags_per_step": 2, "epochs": 2}}
    )
    model = build(config, 5, ["a", "b"], [3, 2])
    result = fit(model, bags, bags, config.fit, seed=0, score=lambda y, p: 0.5)
    assert all(np.isfinite(row["train_loss"]) for row in result.history)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("y", [[0, 0, 0], [0, 1, 2]], ids=["one class", "all different"])
def test_a_step_without_one_kind_of_pair_is_finite(name, y):
    objective, out = OBJECTIVES.load(name)(3, 6, [4, 4, 4]), output(3)
    out.embedding.requires_grad_(), out.logits.requires_grad_()
    objective(out, torch.tensor(y)).backward()
    for tensor in (out.embedding, out.logits):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", ["opl", "supcon"])
def test_a_cohort_of_one_bag_per_class_has_no_pair_ever(name):
    with pytest.raises(TrainingError, match="no class has two training bags"):
        OBJECTIVES.load(name)(3, 6, [1, 1, 1])


def test_a_mean_over_nothing_is_zero():
    values = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    assert masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)) == 0
    assert masked_mean(values, torch.tensor([[True, False], [True, False]])) == 2
