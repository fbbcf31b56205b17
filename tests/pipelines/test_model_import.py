"""`wsi model import`: a run folder that predict and explain take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipelines.cli import run_command
from tests.pipelines.conftest import CLASSES, DIM, Study
from wsi.bags import open_store


def clam(dim: int = DIM) -> nn.ModuleDict:
    """The layers of CLAM's single branch with plain attention, at random."""
    torch.manual_seed(0)
    attention = nn.ModuleDict(
        {"module": nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1))}
    )
    net = nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Dropout(), attention)
    return nn.ModuleDict({"attention_net": net, "classifiers": nn.Linear(16, len(CLASSES))})


def words(file: Path, study: Study, out: Path, *more: object) -> list[str]:
    names = ",".join(CLASSES)
    given = ["model", "import", file, "--from", "clam", "--classes", names, "--bags", study.bags]
    return [str(word) for word in [*given, "--out", out, *more]]


def test_imported_weights_predict_bags_as_the_layers_do(
    shared_study: Study, tmp_path: Path, said_json, refused
) -> None:
    theirs = clam().eval()
    torch.save(theirs.state_dict(), tmp_path / "s_0_checkpoint.pt")
    run, out = tmp_path / "run", tmp_path / "out"
    told = said_json(words(tmp_path / "s_0_checkpoint.pt", shared_study, run))
    assert told["aggregator"] == "abmil"
    assert (
        run_command(["predict", str(run), "--bags", str(shared_study.bags), "--out", str(out)]) == 0
    )
    found = pd.read_csv(out / "predictions.csv").set_index("slide_id")
    assert len(found) == 27
    assert set(found["in_training"]) == {"no"}
    store = open_store(shared_study.bags)
    net: nn.Sequential = theirs["attention_net"]  # pyright: ignore[reportAssignmentType]
    for slide_id, row in found.iterrows():
        h = net[:3](torch.from_numpy(np.array(store.read(str(slide_id)).features)))
        a = net[3]["module"](h).softmax(0)  # pyright: ignore[reportIndexIssue]
        p = theirs["classifiers"]((a * h).sum(0)).softmax(0)
        np.testing.assert_allclose(
            row[[f"p_{c}" for c in CLASSES]].astype(float), p.detach(), atol=1e-6
        )
    again = words(tmp_path / "s_0_checkpoint.pt", shared_study, run)
    assert "holds this model already" in refused(again, 2)


def test_a_model_of_other_features_is_refused(shared_study: Study, tmp_path: Path, refused) -> None:
    torch.save(clam(dim=DIM + 1).state_dict(), tmp_path / "model.pt")
    said = refused(words(tmp_path / "model.pt", shared_study, tmp_path / "run"), 5)
    assert f"takes {DIM + 1} features per tile" in said
    assert not (tmp_path / "run").exists()
