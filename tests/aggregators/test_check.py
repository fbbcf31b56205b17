"""Settings that are possible one by one and not together, found before any work."""

from __future__ import annotations

import pytest
import torch

from wsi.aggregators import check_aggregator
from wsi.errors import ConfigError, UnknownNameError


def test_values_get_the_types_of_the_settings():
    assert check_aggregator("abmil", {"heads": "4"}, "logits") == {"heads": 4}


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("abmil", {"heads": 3}, "heads=3"),
        ("abmil", {"head": 4}, "did you mean 'heads'"),
        ("lse", {"r": 0}, "r=0"),
        ("clam_sb", {"instance_loss": "hinge"}, "instance_loss"),
    ],
)
def test_impossible_settings_are_named(name, params, words):
    with pytest.raises(ConfigError, match=words):
        check_aggregator(name, params, "logits")


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'dsmil'"):
        check_aggregator("dmsil", {}, "logits")


@pytest.mark.parametrize("name", ["abmil_mb", "clam_sb", "clam_mb", "dsmil"])
def test_what_needs_classes_is_refused_to_objectives_on_the_embedding(name):
    check_aggregator(name, {}, "logits")
    with pytest.raises(ConfigError, match=f"'{name}'.*use one on logits"):
        check_aggregator(name, {}, "embedding")


def test_checking_draws_nothing_from_the_shared_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_aggregator("abmil", {}, "logits")
    assert torch.equal(torch.rand(1), expected)
