"""Prediction: order, shapes, and labels out of reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.data import BagDataset, from_arrays
from wsi.errors import TrainingError
from wsi.specs import Config
from wsi.training.model import build
from wsi.training.predict import predict

SIZES = {"c": 4, "a": 1, "b": 30}


def model_of(aggregator="abmil", **params):
    config = Config.model_validate({"aggregator": {"name": aggregator, "hidden": 8, **params}})
    return build(config, 5, ["x", "y", "z"], [2, 2, 2])


def features():
    rng = np.random.default_rng(0)
    return {slide_id: rng.normal(size=(n, 5)).astype(np.float16) for slide_id, n in SIZES.items()}


def test_rows_follow_the_data_set_and_attention_follows_the_tiles():
    predicted = predict(model_of(heads=2), from_arrays(features()), attention=True)
    assert predicted.slide_ids == ("c", "a", "b")
    assert predicted.probabilities.shape == (3, 3)
    assert predicted.embeddings.shape == (3, 8)
    assert predicted.attention is not None
    assert [a.shape for a in predicted.attention] == [(4, 2), (1, 2), (30, 2)]
    np.testing.assert_allclose(predicted.probabilities.sum(1), 1)


def test_attention_is_none_when_not_asked_for_or_not_to_be_had():
    assert predict(model_of(), from_arrays(features())).attention is None
    assert predict(model_of("max"), from_arrays(features()), attention=True).attention is None


def test_a_slides_prediction_does_not_depend_on_the_others():
    model, everything = model_of(), features()
    together = predict(model, from_arrays(everything))
    for i, slide_id in enumerate(everything):
        alone = predict(model, from_arrays({slide_id: everything[slide_id]}))
        np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[i])


def test_labels_are_out_of_reach():
    model, seen = model_of(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].y))
    truth = predict(model, from_arrays(features(), [0, 1, 2]))
    lies = predict(model, from_arrays(features(), [2, 2, 0]))
    none = predict(model, from_arrays(features()))
    assert seen == [None] * 9
    np.testing.assert_array_equal(truth.probabilities, lies.probabilities)
    np.testing.assert_array_equal(truth.probabilities, none.probabilities)


def test_the_mode_of_the_model_is_given_back():
    model = model_of(dropout=0.9).train()
    first, second = (predict(model, from_arrays(features())) for _ in range(2))
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert model.training


def test_nothing_to_predict_is_an_error():
    with pytest.raises(TrainingError, match="no slide to predict"):
        predict(model_of(), BagDataset(features().__getitem__, []))


def test_a_slide_without_a_finite_prediction_is_named():
    broken = features() | {"a": np.full((2, 5), np.nan)}
    with pytest.raises(TrainingError, match="a: a predicted probability is not a finite number"):
        predict(model_of(), from_arrays(broken))


def test_gradients_are_not_kept():
    predict(model := model_of(), from_arrays(features()))
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
