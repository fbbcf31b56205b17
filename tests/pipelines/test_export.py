"""`wsi export`: which model of a run becomes the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import run_command
from tests.pipelines.conftest import CLASSES, Study
from wsi.bags import open_store

ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def test_the_file_predicts_test_slides_as_the_run_did(
    shared_run: Path, shared_study: Study, tmp_path: Path, refused
) -> None:
    out = tmp_path / "model.onnx"
    given = ["export", shared_run, "--out", out, "--fold", 1, "--seed", 0]
    assert run_command([str(word) for word in given]) == 0
    session, store = ort.InferenceSession(out), open_store(shared_study.bags)
    tested = pd.read_csv(shared_run / "fold1-seed0" / "predictions.csv")
    assert len(tested) > 5
    for row in tested.to_dict("records"):
        features = store.read(row["slide_id"]).features
        (p,) = session.run(["probabilities"], {"features": features})
        np.testing.assert_allclose(p, [row[f"p_{name}"] for name in CLASSES], atol=1e-5)
    before = out.read_bytes()
    assert "is there already" in refused(given, 2)
    assert out.read_bytes() == before


def test_a_run_of_several_models_asks_which(shared_run: Path, tmp_path: Path, refused) -> None:
    said = refused(["export", shared_run, "--out", tmp_path / "m.onnx", "--fold", 0], 2)
    assert "fold 0 seed 0, fold 0 seed 1" in said
    assert "ends in .onnx" in refused(["export", shared_run, "--out", tmp_path / "m.pt"], 2)
    assert not list(tmp_path.iterdir())
