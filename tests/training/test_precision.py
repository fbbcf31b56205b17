"""In which type a fit multiplies matrices, and what must not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from wsi.aggregators import AGGREGATORS
from wsi.data import from_arrays
from wsi.encoders import compute
from wsi.specs import Config, FitSpec
from wsi.training import precision
from wsi.training.loop import fit
from wsi.training.model import build
from wsi.training.precision import fabric_of, precision_of
from wsi.training.predict import predict
from wsi.training.step import joined_output, steps_of

HOST = torch.device("cpu")


def auc(y, p):
    return roc_auc_score(y, p[:, 1])


def toy(n, D, seed=0, mean=0.0, dtype=np.float16):
    rng = np.random.default_rng(seed)
    bags = {f"{seed}-{i}": mean + rng.normal((i % 2) / 8, 1, (20, D)) for i in range(n)}
    return from_arrays({s: x.astype(dtype) for s, x in bags.items()}, np.arange(n) % 2)


def model_of(D, aggregator="abmil"):
    config = Config.model_validate({"aggregator": aggregator, "objective": "ncmi"})
    return build(config, D, ["no", "yes"], [10, 10])


@pytest.mark.parametrize(
    ("asked", "native", "sizes", "expected"),
    [
        ("auto", True, (1024, 512), "bf16"),
        ("auto", False, (1024, 512), "fp32"),
        ("auto", True, (6, 8), "fp32"),
        ("fp32", True, (1024, 512), "fp32"),
        ("bf16", False, (6, 8), "bf16"),
    ],
)
def test_auto_is_bf16_where_it_is_native_and_the_model_large(
    monkeypatch, asked, native, sizes, expected
):
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: native)
    assert precision_of(asked, HOST, *sizes) == expected


def test_a_fit_says_in_which_type_it_computed(monkeypatch):
    monkeypatch.setattr(precision, "settle_precision", lambda *_: "bf16")
    for D, expected in ((16, "fp32"), (512, "bf16")):
        result = fit(model_of(D), toy(4, D), None, FitSpec(epochs=1), seed=0, score=auc)
        assert result.precision == expected


def test_half_precision_trains_to_nearly_the_same_and_leaves_everything_float32():
    D, predicted = 64, {}
    for kind in ("fp32", "bf16"):
        model = model_of(D)
        spec = FitSpec(epochs=3, lr=1e-3, bags_per_step=4, precision=kind)
        fit(model, toy(16, D), toy(8, D, 1), spec, seed=0, score=auc)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        predicted[kind] = predict(model, toy(8, D, 2)).probabilities
    assert not np.array_equal(predicted["fp32"], predicted["bf16"])
    np.testing.assert_allclose(predicted["bf16"], predicted["fp32"], atol=0.1)


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_an_output_in_half_precision_is_near_that_in_full(name):
    D, seen = 64, {}
    spec = FitSpec(bags_per_step=4)
    data = toy(4, D)
    for kind in ("fp32", "bf16"):
        placeless = {"position": "none"} if AGGREGATORS.load(name).uses_coordinates else {}
        config = Config.model_validate({"aggregator": {"name": name, **placeless}})
        model = build(config, D, ["no", "yes"], [2, 2]).eval()
        (pieces,) = steps_of(data, spec, HOST, 0, 0)
        output = joined_output(fabric_of("cpu", kind), model, pieces, 1000)
        assert output.logits is not None
        assert output.logits.dtype == torch.float32
        seen[kind] = output.logits.detach().numpy()
    assert np.abs(seen["bf16"] - seen["fp32"]).max() < 0.03 * np.abs(seen["fp32"]).max() + 0.01


def test_features_far_from_zero_keep_their_digits():
    """At a mean of 100 bf16 steps by half a unit: what is rounded first has lost its sd of 1."""
    D = 8
    data = toy(6, D, mean=100.0, dtype=np.float32)
    model = model_of(D)
    model.standardise(data)
    tiles = np.concatenate([data.tiles(i)[0] for i in range(6)]).astype(np.float64)
    expected = (tiles - tiles.mean(0)) / tiles.std(0)
    batch = data.batch(range(6))
    with torch.autocast("cpu", torch.bfloat16):
        given = model._standardised(batch).x
    assert given.dtype == torch.bfloat16
    np.testing.assert_allclose(given.double(), expected, atol=0.02)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
def test_blocks_leave_no_tile_out(rows):
    rng = np.random.default_rng(0)
    data = from_arrays({"a": rng.normal(2, 3, (rows, 1024)).astype(np.float16)}, [0])
    model = model_of(1024)
    model.standardise(data)
    x = data.tiles(0)[0].astype(np.float64)
    spread = np.where(x.std(0) > 1e-6, x.std(0), 1)
    given = model._standardised(data.batch([0])).x.double()
    np.testing.assert_allclose(given, (x - x.mean(0)) / spread, atol=1e-3)
