"""Checkpoints give the same model back, and refuse everything else by name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wsi.aggregators import AGGREGATORS
from wsi.data import ArrayBag, BagDataset, from_arrays
from wsi.errors import TrainingError
from wsi.objectives import OBJECTIVES
from wsi.specs import Config
from wsi.training.checkpoint import Origin, load, save
from wsi.training.model import build
from wsi.training.predict import predict

ORIGIN = Origin(recipe="texture-v1_0.5um_256px", epoch=4, monitor="auc", value=0.75)


def model_of(aggregator="abmil", objective="ncmi"):
    config = Config.model_validate(
        {
            "aggregator": {"name": aggregator, "hidden": 16},
            "objective": objective,
            "fit": {"bags_per_step": 2},  # some objectives compare bags
        }
    )
    return build(config, 6, ["low", "mid", "high"], [4, 5, 6], seed=3)


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "model.safetensors", model_of(), ORIGIN)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("aggregator", AGGREGATORS.names())
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_a_loaded_model_predicts_bit_for_bit_the_same(tmp_path, aggregator, objective):
    if AGGREGATORS.load(aggregator).needs_head and OBJECTIVES.load(objective).wants != "logits":
        pytest.skip(f"{aggregator} cannot be built without a head")
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(range(3), range(3)), -1).reshape(9, 2) * 512
    bags = {str(i): ArrayBag(rng.normal(size=(9, 6)), xy0=corners) for i in range(5)}
    dataset = BagDataset(bags.__getitem__, list(bags))
    model = model_of(aggregator, objective)
    save(tmp_path / "m.safetensors", model, ORIGIN)
    loaded, origin = load(tmp_path / "m.safetensors")
    expected, actual = predict(model.eval(), dataset), predict(loaded, dataset)
    np.testing.assert_array_equal(actual.probabilities, expected.probabilities)
    np.testing.assert_array_equal(actual.embeddings, expected.embeddings)
    assert loaded.card == model.card
    assert origin == ORIGIN


def test_nothing_temporary_stays_behind(path):
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"absent\.safetensors"):
        load(tmp_path / "absent.safetensors")


class Canary:
    def __reduce__(self):
        return (print, ("the canary ran",))


def test_a_pickle_is_refused_and_never_run(tmp_path, capsys):
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load(tmp_path / "m.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_cut_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load(path)


def test_a_file_of_another_tool_is_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load(tmp_path / "m.safetensors")


def rewritten(path, tensors=None, **changes):
    with safe_open(path, framework="pt") as handle:
        metadata, names = handle.metadata(), list(handle.keys())
        kept = {name: handle.get_tensor(name) for name in names}
    for old, new in changes.values():
        assert old in metadata["wsi"]
        metadata["wsi"] = metadata["wsi"].replace(old, new)
    save_file(kept if tensors is None else tensors(kept), path, metadata=metadata)


def test_a_newer_schema_is_refused(path):
    rewritten(path, schema=("wsi-checkpoint/2", "wsi-checkpoint/3"))
    with pytest.raises(TrainingError, match="schema 'wsi-checkpoint/3'"):
        load(path)


def of_the_first_schema(kept):
    """Without what decision rules keep, which the first schema knew nothing of."""
    rules = ("objective.settled", "objective.class_mean.", "objective.probe.")
    return {name: value for name, value in kept.items() if not name.startswith(rules)}


def test_a_checkpoint_of_the_first_schema_decides_by_its_own_rule(tmp_path):
    path, model = tmp_path / "m.safetensors", model_of(objective="ce")
    save(path, model, ORIGIN)
    rewritten(path, of_the_first_schema, schema=("wsi-checkpoint/2", "wsi-checkpoint/1"))
    dataset = from_arrays({"a": np.random.default_rng(0).normal(size=(9, 6))})
    loaded, _ = load(path)
    assert loaded.objective.rule == "own"
    expected, actual = predict(model.eval(), dataset), predict(loaded, dataset)
    np.testing.assert_array_equal(actual.probabilities, expected.probabilities)


@pytest.mark.parametrize("lost", ["head.weight", "objective.weights"])
def test_a_checkpoint_of_the_first_schema_lacks_nothing_else(tmp_path, lost):
    path = tmp_path / "m.safetensors"
    save(path, model_of(objective="ce"), ORIGIN)

    def first(kept):
        gone = [name for name in kept if name.endswith(lost)]
        assert gone
        return {k: v for k, v in of_the_first_schema(kept).items() if k not in gone}

    rewritten(path, first, schema=("wsi-checkpoint/2", "wsi-checkpoint/1"))
    with pytest.raises(TrainingError, match=r"earlier version of wsi.*train it again"):
        load(path)


def test_todays_schema_may_lack_no_rule(path):
    rewritten(path, of_the_first_schema)
    with pytest.raises(TrainingError, match="at odds with its own description"):
        load(path)


def test_weights_at_odds_with_the_description_are_refused(path):
    rewritten(path, dim=('"dim": 6', '"dim": 7'))
    with pytest.raises(TrainingError, match="at odds with its own description"):
        load(path)


def test_missing_weights_are_refused(path):
    rewritten(path, tensors=lambda kept: dict(list(kept.items())[1:]))
    with pytest.raises(TrainingError, match="at odds with its own description"):
        load(path)
