"""The classifier of a notebook against the command line: same split and seed, same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from wsi import MILClassifier, StoredBags, open_store
from wsi.bags import create_store
from wsi.errors import BagMismatchError

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

SORTED = ["itc", "macro", "normal"]


@pytest.fixture(scope="module")
def run(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "sorted"
    settings = ("split.folds=3", "fit.epochs=2", "fit.lr=0.01", "evaluate.replicates=100")
    words = (f"data.classes=[{','.join(SORTED)}]", "aggregator.hidden=8", "split.val.fraction=0.3")
    assert shared_study.train(out, settings=(*settings, *words)) == 0
    return out


def test_the_same_split_and_seed_give_the_same_bytes(shared_study: Study, run: Path) -> None:
    table = pd.read_csv(run / "splits.csv", dtype=str)
    of = pd.read_csv(shared_study.cohort, dtype=str).set_index("slide_id")
    parts = table[table["fold"] == "0"].groupby("part")["slide_id"].apply(sorted)
    learnt, tested = sorted([*parts["train"], *parts["val"]]), parts["test"]
    store = open_store(shared_study.bags)
    model = MILClassifier(epochs=2, lr=0.01, aggregator_params={"hidden": 8}, validation=0.3)
    bags = StoredBags(store, learnt)
    model.fit(bags, of.loc[learnt, "label"], groups=of.loc[learnt, "patient_id"])
    assert model.classes_.tolist() == SORTED
    assert [bags.ids[k] for k in model.validation_] == parts["val"]
    told = pd.read_csv(run / "fold0-seed0" / "predictions.csv", dtype={"slide_id": str})
    assert told["slide_id"].tolist() == tested
    expected = told[[f"p_{name}" for name in SORTED]].to_numpy()
    found = model.predict_proba(StoredBags(store, tested))
    assert found.tobytes() == expected.tobytes()
    in_memory = [store.read(slide_id).features for slide_id in tested]
    assert model.predict_proba(in_memory).tobytes() == expected.tobytes()


def test_a_checkpoint_of_the_command_line_is_a_classifier(shared_study: Study, run: Path) -> None:
    model = MILClassifier.load(run / "fold1-seed0" / "model.safetensors")
    told = pd.read_csv(run / "fold1-seed0" / "predictions.csv", dtype={"slide_id": str})
    bags = StoredBags(open_store(shared_study.bags), told["slide_id"])
    expected = told[[f"p_{name}" for name in SORTED]].to_numpy()
    np.testing.assert_array_equal(model.predict_proba(bags), expected)
    assert model.predict(bags).tolist() == [SORTED[k] for k in expected.argmax(axis=1)]
    assert model.get_params()["aggregator_params"]["hidden"] == 8


def test_bags_of_another_recipe_are_refused(study: Study, run: Path, tmp_path: Path) -> None:
    model = MILClassifier.load(run / "fold0-seed0" / "model.safetensors")
    study.put(tmp_path / "other", "x-normal-0-0", tile_px=512)
    other = StoredBags(create_store(tmp_path / "other"))
    with pytest.raises(BagMismatchError, match="x-normal-0-0 was made by another recipe"):
        model.predict(other)
