"""Trackers are told settings and numbers, by their real packages where these are installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.trackers import figures_of, scores_of
from tests.pipelines.conftest import SHARED, Study

Refused = Callable[..., str]


def rows(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(run.glob("fold*/metrics.jsonl"))
    }


def secrets(study: Study) -> list[bytes]:
    """Return what must stay here: ids of slides and patients, and where things lie."""
    ids = {row.slide_id for row in study.rows} | {row.patient_id for row in study.rows}
    return [word.encode() for word in [*sorted(ids), str(study.root)]]


# -- what is sent ------------------------------------------------------------------------------


def test_numbers_alone_are_figures() -> None:
    row = {
        "epoch": 3,
        "train_loss": 0.5,
        "val_loss": None,
        "alarms": [{"name": "collapse", "message": "slide s1"}],
        "figures": {"accuracy": 0.75, "by_class": [0.5, None, 1], "note": "s1", "on": True},
    }
    assert figures_of(row) == {
        "epoch": 3,
        "train_loss": 0.5,
        "figures/accuracy": 0.75,
        "figures/by_class/0": 0.5,
        "figures/by_class/2": 1,
    }


def test_headline_scores_are_sent_and_undefined_ones_left_out() -> None:
    metrics = {
        "schema": "wsi-metrics/1",
        "n": 27,
        "auc": {"value": 0.5, "low": 0.4},
        "kappa": {"value": None, "reason": "classes are not ordered"},
        "coverage": {"not_evaluable": {"slide": "no bag"}},
    }
    assert scores_of(metrics) == {"auc": 0.5}


# -- a tracker of our own ----------------------------------------------------------------------


class Recorder:
    """Keeps what it is told; fails when asked to."""

    made: Recorder

    def __init__(self, fails: str = "") -> None:
        self.said: list[tuple[Any, ...]] = []
        self.fails = fails
        Recorder.made = self

    def begin(self, run: str, config: Mapping[str, Any], known: str | None) -> str:
        self._keep("begin", run, dict(config), known)
        return known or "record-1"

    def epoch(self, fold: int, seed: int, row: Mapping[str, float]) -> None:
        self._keep("epoch", fold, seed, dict(row))

    def end(self, metrics: Mapping[str, float] | None) -> None:
        self._keep("end", metrics)

    def _keep(self, what: str, *facts: Any) -> None:
        if what == self.fails:
            raise OSError("the server\nis gone")
        self.said.append((what, *facts))

    def epochs(self) -> list[tuple[int, int, int]]:
        return [(f, s, row["epoch"]) for what, f, s, row in self.of("epoch") if what]

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [said for said in self.said if said[0] == what]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `--track wandb` mean a recorder."""

    def use(fails: str = "") -> None:
        module = ModuleType("pipelines.trackers.wandb_tracker")
        module.make = lambda root: Recorder(fails)  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    use()
    return use


def test_a_tracker_is_told_settings_every_epoch_and_scores(
    shared_study: Study, tmp_path: Path, recorder: Callable[..., None]
) -> None:
    run = tmp_path / "my-run"
    assert shared_study.train(run, "--track", "wandb") == 0
    told = Recorder.made
    ((_, name, config, known),) = told.of("begin")
    assert (name, known) == ("my-run", None)
    assert config["aggregator.name"] == "abmil"
    assert config["fit.epochs"] == 2
    expected = [(f, 0, r["epoch"]) for f in range(3) for r in rows(run)[f"fold{f}-seed0"]]
    assert told.epochs() == expected
    losses = [row["train_loss"] for *_, row in told.of("epoch")]
    assert losses == [r["train_loss"] for of_fit in rows(run).values() for r in of_fit]
    metrics = json.loads((run / "metrics.json").read_text())
    ((_, scores),) = told.of("end")
    assert scores["macro_f1"] == metrics["macro_f1"]["value"]
    text = json.dumps(told.said, default=str).encode()
    assert not [word for word in secrets(shared_study) if word in text]


def test_a_rerun_goes_on_with_the_same_record_and_tells_nothing_twice(
    shared_study: Study, run_copy: Path, recorder: Callable[..., None]
) -> None:
    assert shared_study.train(run_copy, "fit.seeds=2", "--track", "wandb") == 0
    first = Recorder.made
    assert len(first.epochs()) == 12  # the run was not tracked before: it catches up
    (run_copy / "fold1-seed1" / "done.json").unlink()
    assert shared_study.train(run_copy, "fit.seeds=2", "--track", "wandb") == 0
    assert Recorder.made.of("begin")[0][3] == "record-1"
    assert Recorder.made.epochs() == [(1, 1, 0), (1, 1, 1)]


def test_tracking_is_no_part_of_a_run(
    shared_study: Study, shared_run: Path, tmp_path: Path, recorder: Callable[..., None]
) -> None:
    assert shared_study.train(tmp_path / "run", *SHARED, "--track", "wandb") == 0
    for name in ("config.yaml", "inputs.json", "predictions.csv", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (shared_run / name).read_bytes()


@pytest.mark.parametrize("fails", ["epoch", "end"])
def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    shared_study: Study,
    tmp_path: Path,
    recorder: Callable[..., None],
    fails: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder(fails)
    assert shared_study.train(tmp_path / "run", "--track", "wandb") == 0
    said = capsys.readouterr().err
    assert said.count("--track wandb failed and is left out from here: OSError: the server") == 1
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_tracker_that_cannot_begin_stops_before_training(
    shared_study: Study, tmp_path: Path, recorder: Callable[..., None], refused: Refused
) -> None:
    recorder("begin")
    said = refused(shared_study.command(tmp_path / "run", "--track", "wandb"), 2)
    assert "--track wandb cannot begin: OSError: the server is gone" in said
    assert not list(tmp_path.glob("run/fold*"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    shared_study: Study,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"pipelines.trackers.{name}_tracker", raising=False)
    said = refused(shared_study.command(tmp_path / "run", "--track", name), 2)
    assert f"pip install 'wsi[{name}]'" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_unknown_tracker_is_refused(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    assert "tensorboard" in refused(shared_study.command(tmp_path / "run", "--track", "comet"), 2)


# -- the real ones -----------------------------------------------------------------------------


def test_tensorboard_reads_what_was_written(shared_study: Study, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'wsi[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert shared_study.train(run, "--track", "tensorboard") == 0
    for fit, of_fit in rows(run).items():
        read = EventAccumulator(str(run / "tensorboard" / fit)).Reload()
        losses = read.Scalars("train_loss")
        assert [event.step for event in losses] == [row["epoch"] for row in of_fit]
        assert [event.value for event in losses] == pytest.approx([r["train_loss"] for r in of_fit])
    metrics = json.loads((run / "metrics.json").read_text())
    read = EventAccumulator(str(run / "tensorboard" / "run")).Reload()
    assert read.Scalars("test/auc")[0].value == pytest.approx(metrics["auc"]["value"])
    written = b"".join(p.read_bytes() for p in (run / "tensorboard").rglob("*") if p.is_file())
    assert not [word for word in secrets(shared_study) if word in written]


@pytest.mark.filterwarnings("ignore")  # of the package's own
def test_mlflow_reads_what_was_logged(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow", reason="needs pip install 'wsi[mlflow]'")
    from mlflow.tracking import MlflowClient

    run = tmp_path / "run"
    assert shared_study.train(run, "--track", "mlflow") == 0
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("wsi")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "run"
    assert logged.info.status == "FINISHED"
    assert logged.data.params["objective.name"] == "ce"
    metrics = json.loads((run / "metrics.json").read_text())
    assert logged.data.metrics["test/auc"] == pytest.approx(metrics["auc"]["value"])
    for fit, of_fit in rows(run).items():
        history = client.get_metric_history(logged.info.run_id, f"{fit}/train_loss")
        assert [(m.step, m.value) for m in history] == [
            (row["epoch"], row["train_loss"]) for row in of_fit
        ]
    (run / "fold0-seed0" / "done.json").unlink()
    assert shared_study.train(run, "--track", "mlflow") == 0
    assert len(client.search_runs([experiment.experiment_id])) == 1
    written = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    ids = secrets(shared_study)[:-1]  # a file store says where itself lies
    assert not [word for word in ids if word in written]


class FakeWandb(ModuleType):
    """The few calls of wandb that are used, by its documentation; no network, no process."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.settings: dict[str, Any] = {}
        self.init_args: dict[str, Any] = {}
        self.logged: list[dict[str, float]] = []
        self.defined: list[tuple[str, str]] = []
        self.summary: dict[str, float] = {}
        self.finished: list[int] = []

    def Settings(self, **given: Any) -> dict[str, Any]:  # noqa: N802
        self.settings = given
        return given

    def init(self, **given: Any) -> Any:
        self.init_args = given
        return SimpleNamespace(
            id=given["id"] or "abc",
            define_metric=lambda name, step_metric: self.defined.append((name, step_metric)),
            log=self.logged.append,
            summary=self.summary,
            finish=lambda exit_code: self.finished.append(exit_code),
        )


def test_wandb_gets_numbers_by_fold_and_seed(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, run = FakeWandb(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "pipelines.trackers.wandb_tracker", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert shared_study.train(run, "--track", "wandb") == 0
    monkeypatch.delitem(sys.modules, "pipelines.trackers.wandb_tracker", raising=False)
    assert fake.init_args["project"] == "ours"
    assert fake.init_args["resume"] == "allow"
    assert fake.settings["console"] == "off"
    assert fake.defined == [(f"fold{k}-seed0/*", f"fold{k}-seed0/epoch") for k in range(3)]
    losses = [log["fold1-seed0/train_loss"] for log in fake.logged if "fold1-seed0/epoch" in log]
    assert losses == [row["train_loss"] for row in rows(run)["fold1-seed0"]]
    metrics = json.loads((run / "metrics.json").read_text())
    assert fake.summary["test/auc"] == metrics["auc"]["value"]
    assert fake.finished == [0]
