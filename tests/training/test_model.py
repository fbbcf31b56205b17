"""Models are built from names, and everything misspelt is an error first."""

from __future__ import annotations

import pytest
import torch

from wsi.errors import ConfigError, TrainingError, UnknownNameError
from wsi.specs import Config
from wsi.training.model import build


def config(**settings):
    return Config.model_validate(settings)


def test_a_head_is_built_only_where_the_objective_wants_logits():
    assert build(config(objective="ce"), 8, "ab", [3, 3]).aggregator.head is not None
    assert build(config(objective="ncmi"), 8, "ab", [3, 3]).aggregator.head is None


def test_parameters_reach_aggregator_and_objective():
    chosen = config(
        aggregator={"name": "abmil", "hidden": 24, "gated": "false"},
        objective={"name": "ncmi", "m": 48},
    )
    model = build(chosen, 8, "ab", [3, 3])
    assert model.aggregator.embedding_dim == 24
    assert model.aggregator.get_submodule("attention").gate is None
    assert model.objective.get_submodule("projection").weight.shape == (48, 24)


def test_a_misspelt_name_or_parameter_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'abmil'"):
        build(config(aggregator="abmill"), 8, "ab", [3, 3])
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        build(config(aggregator={"name": "abmil", "hiddn": 8}), 8, "ab", [3, 3])
    with pytest.raises(ConfigError, match="temperature"):
        build(config(objective={"name": "ncmi", "temperature": "warm"}), 8, "ab", [3, 3])


def test_a_class_without_training_bags_is_named():
    with pytest.raises(TrainingError, match="class metastasis has no training bag"):
        build(config(), 8, ["normal", "metastasis"], [3, 0])


def test_initial_weights_depend_on_the_seed_alone():
    first, second, other = (build(config(), 8, "ab", [3, 3], seed=s) for s in (5, 5, 6))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.aggregator.head.weight, other.aggregator.head.weight)
