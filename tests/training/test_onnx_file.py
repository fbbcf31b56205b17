"""A model as ONNX: the same numbers by another engine, or a refusal and no file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from wsi.aggregators.base import Aggregator, Output
from wsi.data import from_arrays
from wsi.errors import ConfigError, TrainingError
from wsi.objectives.rules import RULES
from wsi.training import onnx_file
from wsi.training.model import Model, ModelCard, from_card
from wsi.training.predict import predict

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

DIM, CLASSES = 12, ("normal", "itc", "macro")


def model_of(aggregator: str, objective: str, rule: str = "own") -> Model:
    settings = {"hidden": 16}
    model = from_card(ModelCard(DIM, CLASSES, (3, 4, 5), aggregator, objective, settings), seed=1)
    rng = np.random.default_rng(0)
    model.feature_mean.copy_(torch.tensor(rng.normal(5, 3, DIM)))
    model.feature_scale.copy_(torch.tensor(rng.uniform(0.1, 4, DIM)))
    model.objective.settled.fill_(RULES.index(rule))  # pyright: ignore[reportArgumentType]
    for name, value in model.objective.state_dict().items():
        if name.startswith(("class_mean.means", "probe.weight")):
            value.copy_(torch.tensor(rng.uniform(0.2, 2, value.shape)))
    return model.eval()


@pytest.mark.parametrize(
    ("aggregator", "objective", "rule"),
    [
        pytest.param("abmil", "ce", "own", marks=pytest.mark.slow),
        ("abmil", "ncmi", "class_mean"),
        ("mean", "ce", "class_mean"),
        pytest.param("max", "ce", "probe", marks=pytest.mark.slow),
    ],
)
def test_another_engine_predicts_bags_of_any_size_alike(
    aggregator: str, objective: str, rule: str
) -> None:
    model = model_of(aggregator, objective, rule)
    made = onnx_file.export(model, {"recipe": {"tile_px": 256}})
    assert_told(made.content)
    session = ort.InferenceSession(made.content)
    rng = np.random.default_rng(7)
    bags = {str(n): rng.normal(5, 3, (n, DIM)).astype(np.float32) for n in (1, 2, 13, 300)}
    expected = predict(model, from_arrays(bags), attention=True)
    for k, x in enumerate(bags.values()):
        given = dict(zip(made.outputs, session.run(list(made.outputs), {"features": x})))
        np.testing.assert_allclose(given["probabilities"], expected.probabilities[k], atol=1e-5)
        np.testing.assert_allclose(given["embedding"], expected.embeddings[k], rtol=1e-4, atol=1e-5)
        if expected.attention is None:
            assert "attention" not in given
        else:
            np.testing.assert_allclose(given["attention"], expected.attention[k], atol=1e-5)


def assert_told(content: bytes) -> None:
    told = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert told["schema"] == "wsi-onnx/1"
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["recipe"]) == {"tile_px": 256}
    assert told["use"] == "research use only"


class _Odd(Aggregator):
    """Stands in for what an exporter cannot follow, or follows wrongly."""

    def __init__(self, kind: str) -> None:
        super().__init__(DIM, len(CLASSES), DIM)
        self.kind = kind

    def aggregate(self, batch) -> Output:
        x = batch.x
        if self.kind == "branches" and float(x.sum()) > 0:
            x = -x
        if self.kind == "places":
            x = x + batch.xy0.mean()
        z = x.mean(0, keepdim=True)
        if self.kind == "other" and not torch.compiler.is_compiling():
            z = z + 1
        return Output(z, self.classify(z))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("branches", "cannot be exported"),
        ("places", "reads where tiles lie"),
        ("other", "differs by"),
    ],
)
def test_what_cannot_be_exported_rightly_is_refused(kind: str, told: str) -> None:
    model = model_of("max", "ce")
    model.aggregator = _Odd(kind)
    with pytest.raises(TrainingError, match=told) as caught:
        onnx_file.export(model, {})
    assert "wsi predict" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi\[onnx\]'"):
        onnx_file.export(model_of("max", "ce"), {})
