"""`wsi sweep`: what is searched, chosen on validation alone, shared and resumed."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sklearn.metrics import roc_auc_score

from pipelines.cli import run_command
from pipelines.config import load_config, read_config, write_config
from pipelines.sweep import fitting
from pipelines.sweep.book import Book, open_journal
from pipelines.sweep.results import best_of
from pipelines.sweep.space import Dimension, space_of
from wsi.bags import open_store
from wsi.claims import Claims
from wsi.data import BagDataset
from wsi.errors import TrainingError
from wsi.specs import Config, RangeSpec
from wsi.training import load
from wsi.training.predict import predict

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Refused = Callable[..., str]
Json = Callable[..., Any]

CLASSES = ["normal", "itc", "macro"]
SMALL = (
    "data.classes=[normal,itc,macro]",
    "split.kind=sites",
    "split.test=[z]",
    "split.val.fraction=0.5",
    "fit.epochs=2",
    "aggregator.hidden=8",
    "evaluate.replicates=100",
)
FOLDS = (*SMALL[:1], "split.kind=leave-one-site-out", *SMALL[3:])
RATES = "sweep.space={fit.lr: {low: 1e-4, high: 1e-1, log: true}, aggregator.gated: [true, false]}"


def words(study: Study, out: Path, *more: object, settings: Sequence[str] = SMALL) -> list[str]:
    """Return the words of a small sweep."""
    given = [*settings, *(str(w) for w in more if "=" in str(w))]
    flags = [str(w) for w in more if "=" not in str(w)]
    where = ["--cohort", str(study.cohort), "--bags", str(study.bags), "--out", str(out)]
    return ["sweep", *given, *where, *flags]


@pytest.fixture(scope="session")
def done(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep of three trials over three folds; never written to."""
    out = tmp_path_factory.mktemp("sweeps") / "out"
    assert run_command(words(shared_study, out, RATES, "--trials", 3, settings=FOLDS)) == 0
    return out


def table(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def without_times(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(out)]


def results_of(out: Path) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"results.json holds {name}")

    return json.loads((out / "results.json").read_text(), parse_constant=refuse)


def fit_times(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.glob("*/*/done.json")}


def journal(out: Path) -> optuna.Study:
    """Read a sweep as Optuna does, with nothing of ours."""
    backend = JournalFileBackend(str((out / "sweep.journal").resolve()))
    return optuna.load_study(study_name="sweep", storage=JournalStorage(backend))


def parts_of(run: Path, fold: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    with (run / "splits.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            if int(row["fold"]) == fold:
                found[row["part"]].append(row["slide_id"])
    return found


def validation_auc(run: Path, study: Study, fold: int) -> float:
    """Return the AUC on validation bags of a saved model, by scikit-learn."""
    model, _ = load(run / f"fold{fold}-seed0" / "model.safetensors")
    labels = {row.slide_id: CLASSES.index(row.label) for row in study.rows}
    ids = parts_of(run, fold)["val"]
    made = predict(model, BagDataset(open_store(study.recipe).read, ids, [labels[s] for s in ids]))
    y = np.array([labels[s] for s in made.slide_ids])
    p = np.asarray(made.probabilities)
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in range(len(CLASSES))]))


# -- what is found -------------------------------------------------------------------------------


def test_the_table_is_what_optuna_reads_back_from_the_journal(done: Path) -> None:
    trials = journal(done).get_trials()
    rows = table(done)
    assert len(rows) == len(trials) == 3
    for row, trial in zip(rows, trials):
        assert int(row["trial"]) == trial.number
        assert row["state"] == trial.state.name.lower() == "complete"
        assert float(row["validation"]) == trial.value
        assert float(row["fit.lr"]) == trial.params["fit.lr"]
        assert row["aggregator.gated"] == str(trial.params["aggregator.gated"])


def test_a_trial_is_judged_by_its_validation_bags_averaged_over_folds(
    done: Path, shared_study: Study
) -> None:
    for row in table(done)[:2]:
        run = done / f"trial-{int(row['trial']):04d}"
        aucs = [validation_auc(run, shared_study, fold) for fold in range(3)]
        assert float(row["validation"]) == pytest.approx(np.mean(aucs), abs=1e-6)
        assert float(row["sd"]) == pytest.approx(np.std(aucs, ddof=1), abs=1e-6)
        assert int(row["fits"]) == 3


def test_the_best_trial_has_the_largest_validation_figure(done: Path) -> None:
    best, rows = results_of(done)["best"], table(done)
    assert best["validation"] == max(float(row["validation"]) for row in rows)
    assert best["validation"] == pytest.approx(journal(done).best_value)
    made = load_config([str(done / "best.yaml")])
    assert made == read_config(done / best["run"] / "config.yaml")
    assert made.fit.lr == best["values"]["fit.lr"]
    assert made.aggregator.params["gated"] is best["values"]["aggregator.gated"]
    assert made.sweep == Config().sweep


def test_all_trials_have_the_splits_of_the_sweep_and_settings_of_their_own(done: Path) -> None:
    splits = {(run / "splits.csv").read_bytes() for run in done.glob("trial-*")}
    assert splits == {(done / "splits.csv").read_bytes()}
    rates = [read_config(run / "config.yaml").fit.lr for run in sorted(done.glob("trial-*"))]
    assert rates == [float(row["fit.lr"]) for row in table(done)]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)


def test_equal_figures_go_to_the_smaller_nll_then_to_the_earlier_trial() -> None:
    def row(trial: int, validation: float | None, nll: float, state: str = "complete") -> Any:
        return {"trial": trial, "state": state, "validation": validation, "nll": nll}

    rows = [row(0, 0.8, 0.5), row(1, 0.9, 0.6), row(2, 0.9, 0.4), row(3, 0.9, 0.4)]
    assert best_of(rows, lower=False) is rows[2]
    assert best_of(rows, lower=True) is rows[0]
    assert best_of([row(0, None, 0.1, "failed")], lower=False) is None


def test_a_grid_finds_what_training_every_combination_finds(
    shared_study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    grid = "sweep.space={fit.lr: [1e-3, 1e-1], aggregator: [abmil, mean]}"
    assert run_command(words(shared_study, out, grid, "sweep.sampler=grid")) == 0
    found = {}
    for rate, name in itertools.product((1e-3, 1e-1), ("abmil", "mean")):
        run = tmp_path / f"{name}-{rate}"
        own = [word for word in SMALL if not word.startswith("aggregator")]
        assert shared_study.train(run, f"fit.lr={rate}", f"aggregator={name}", settings=own) == 0
        found[rate, name] = validation_auc(run, shared_study, 0)
    rows = table(out)
    assert [(float(row["fit.lr"]), row["aggregator"]) for row in rows] == list(found)
    for row, auc in zip(rows, found.values()):
        assert float(row["validation"]) == pytest.approx(auc, abs=1e-6)
    best = results_of(out)["best"]["values"]
    assert found[best["fit.lr"], best["aggregator"]] == max(found.values())


# -- test labels ---------------------------------------------------------------------------------


def test_shuffled_test_labels_change_no_trial_and_no_choice(study: Study, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    assert run_command(words(study, before, RATES, "--trials", 2)) == 0
    tested = [row for row in study.rows if row.site == "z"]
    turned = dict(zip((r.slide_id for r in tested), [r.label for r in tested[3:] + tested[:3]]))
    labels = [turned.get(row.slide_id, row.label) for row in study.rows]
    assert labels != [row.label for row in study.rows]
    rows = [
        type(row)(row.slide_id, row.patient_id, y, row.site) for row, y in zip(study.rows, labels)
    ]
    study.write_cohort(rows)
    assert run_command(words(study, after, RATES, "--trials", 2)) == 0
    assert without_times(after) == without_times(before)
    old, new = results_of(before), results_of(after)
    assert new["best"] == old["best"]
    assert new["test"]["auc"]["value"] != old["test"]["auc"]["value"]


def test_only_the_chosen_trial_is_scored_and_the_others_on_request(
    done: Path, shared_study: Study, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    chosen = results_of(out)["best"]["run"]
    runs = sorted(out.glob("trial-*"))
    assert [run.name for run in runs if (run / "metrics.json").is_file()] == [chosen]
    other = next(run for run in runs if run.name != chosen)
    with (other / "predictions.csv").open(newline="") as handle:
        assert {row["y_true"] for row in csv.DictReader(handle)} == {""}
    assert run_command(["evaluate", str(other), "--replicates", "100"]) == 0
    metrics = json.loads((other / "metrics.json").read_text())
    assert metrics["macro_f1"]["n"] == len(shared_study.rows)
    compared = tmp_path / "compared"
    both = [str(other), str(out / chosen), "--out", str(compared), "--replicates", "100"]
    assert run_command(["compare", *both]) == 0
    assert (compared / "report.html").is_file()


def test_a_sweep_after_whose_trials_were_scored_says_so(
    done: Path, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    chosen = results_of(out)["best"]["run"]
    other = next(run for run in sorted(out.glob("trial-*")) if run.name != chosen)
    assert run_command(["evaluate", str(other), "--replicates", "100"]) == 0
    assert run_command(words(study, out, RATES, "--trials", 3, settings=FOLDS)) == 0
    assert f"({other.name}): choosing among them by test" in capsys.readouterr().err


def test_wsi_train_completes_a_trial_without_fitting_anew(
    done: Path, shared_study: Study, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    chosen = results_of(out)["best"]["run"]
    other = next(run for run in sorted(out.glob("trial-*")) if run.name != chosen)
    before = fit_times(out)
    splits = ["--splits", str(out / "splits.csv")]
    own = [str(other / "config.yaml")]
    assert run_command([*shared_study.command(other, settings=own), *splits]) == 0
    assert fit_times(out) == before
    assert (other / "report.html").is_file()


# -- going on ------------------------------------------------------------------------------------


def test_a_sweep_interrupted_and_taken_further_is_the_sweep_made_at_once(
    done: Path, shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made, train_cell = tmp_path / "out", [], fitting.train_cell

    def interrupted(cell: Any, read: Any) -> Any:
        if len(made) == 4:  # the second fit of the second trial
            raise KeyboardInterrupt
        made.append(cell.folder.name)
        return train_cell(cell, read=read)

    given = words(shared_study, out, RATES, settings=FOLDS)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "train_cell", interrupted)
        assert run_command([*given, "--trials", "2"]) == 130
    before = fit_times(out)
    assert len(before) == 4
    assert [trial.state.name for trial in journal(out).get_trials()] == ["COMPLETE", "RUNNING"]
    assert run_command([*given, "--trials", "3"]) == 0
    assert without_times(out) == without_times(done)
    assert {k: v for k, v in fit_times(out).items() if k in before} == before


def test_a_journal_that_is_gone_does_not_pass_its_trials_on(
    done: Path, shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "out"))
    (out / "sweep.journal").unlink()
    changed = read_config(out / "trial-0000" / "config.yaml")
    fit = changed.fit.model_copy(update={"lr": 0.5})
    write_config(changed.model_copy(update={"fit": fit}), out / "trial-0000" / "config.yaml")
    told = refused(words(shared_study, out, RATES, "--trials", 3, settings=FOLDS), 2)
    assert "trial-0000 holds a run of other settings" in told


def test_a_trial_that_never_had_values_is_failed_and_replaced(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as claims:
        made = book(tmp_path, claims)
        journal(tmp_path).ask()  # as a process leaves it that is killed before it has drawn
        taken = made.take(1)
        assert taken is not None
        assert taken.number == 1
        assert [t.state.name for t in journal(tmp_path).get_trials()] == ["FAIL", "RUNNING"]
        assert [trial.number for trial in made.trials()] == [1]
        assert made.take(1) is None


def test_a_line_of_the_journal_cut_off_by_a_crash_never_happened(tmp_path: Path) -> None:
    path = tmp_path / "sweep.journal"
    optuna.create_study(storage=open_journal(path), study_name="sweep")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker')
    assert optuna.load_study(storage=open_journal(path), study_name="sweep").trials == []
    assert path.read_bytes() == whole


def test_other_settings_or_another_folder_are_refused(
    done: Path, shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    told = refused(words(shared_study, done, RATES, "fit.epochs=3", settings=FOLDS), 2)
    assert "fit.epochs 2 -> 3" in told
    other = RATES.replace("1e-1", "1e-2")
    assert "sweep.space" in refused(words(shared_study, done, other, settings=FOLDS), 2)
    (tmp_path / "mine.txt").touch()
    assert "neither empty nor a sweep" in refused(words(shared_study, tmp_path, RATES), 2)


@pytest.mark.slow
def test_a_killed_process_costs_no_trial(shared_study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    again = words(shared_study, out, RATES, "--trials", 6, "--jobs", 2, settings=FOLDS)
    code = "import sys; from pipelines.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *again]
    killed = 0
    for victim in ("a child", "the command"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        fits = len(fit_times(out)) if out.exists() else 0
        while process.poll() is None and (not out.exists() or len(fit_times(out)) < fits + 3):
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(_fitting(process.pid) if victim == "a child" else process.pid, signal.SIGKILL)
            killed += 1
        assert process.wait(60) == (4 if victim == "a child" else -signal.SIGKILL)
    assert killed == 2
    before = fit_times(out)
    assert subprocess.run(command, check=False).returncode == 0
    rows = table(out)
    assert [row["state"] for row in rows] == ["complete"] * 6
    assert {k: v for k, v in fit_times(out).items() if k in before} == before


def _fitting(pid: int) -> int:
    """Return a fitting child of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {c: Path(f"/proc/{c}/cmdline").read_text() for c in children}
    return int(next(c for c, name in names.items() if "spawn_main" in name))


@pytest.mark.slow
def test_two_commands_share_the_trials(shared_study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    again = words(shared_study, out, RATES, "--trials", 6)
    code = "import sys; from pipelines.cli import main; main(sys.argv[1:])"
    both = [subprocess.Popen([sys.executable, "-c", code, *again]) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    trials = journal(out).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert len({trial.params["fit.lr"] for trial in trials}) == 6
    workers = {
        json.loads(line)["worker_id"]
        for line in (out / "sweep.journal").read_text().splitlines()
        if json.loads(line)["op_code"] == 4  # a trial is made
    }
    assert len(workers) == 2


# -- drawing -------------------------------------------------------------------------------------


def book(folder: Path, claims: Claims, *more: str) -> Book:
    config = load_config([*SMALL, RATES, *more])
    return Book(folder, config.sweep, space_of(config), lower=False, claims=claims)


def test_processes_that_share_a_sweep_draw_what_one_would(tmp_path: Path) -> None:
    with (
        Claims(tmp_path / "a") as mine,
        Claims(tmp_path / "b") as first,
        Claims(tmp_path / "b") as second,
    ):
        alone = book(tmp_path / "alone", mine, "sweep.sampler=random")
        shared = [book(tmp_path / "two", c, "sweep.sampler=random") for c in (first, second)]
        one = [alone.take(4) for _ in range(4)]
        two = [shared[k % 2].take(4) for k in range(4)]
        assert [t.drawn for t in one if t] == [t.drawn for t in two if t]
        assert len({t.drawn["fit.lr"] for t in two if t}) == 4
        assert shared[0].take(4) is None
    with Claims(tmp_path / "c") as third:
        other = book(tmp_path / "other", third, "sweep.sampler=random", "sweep.seed=1").take(4)
        assert other is not None
        assert other.drawn not in [t.drawn for t in one if t]


def test_a_trial_stops_when_its_first_folds_are_below_the_median(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Claims(tmp_path / "claims") as claims:
        made = book(tmp_path, claims, "sweep.sampler=random")
        first: list[float] = []
        stopped = 0
        for _ in range(12):
            trial = made.take(12)
            assert trial is not None
            value = float(rng.random())
            expected = len(first) >= 5 and value < np.median(first)
            assert made.is_hopeless(trial.number, 1, value) == expected
            made.end(trial.number, "pruned" if expected else "complete", value, {})
            trial.claim.release()
            first.append(value)
            stopped += expected
        assert 0 < stopped < 7


# -- what is refused and said --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("{fit.lrr: [1e-3, 1e-2]}", "unknown setting 'fit.lrr' (did you mean 'fit.lr'?)"),
        ("{lr: [1e-3, 1e-2]}", "unknown setting 'lr' (did you mean 'fit.lr'?)"),
        ("{aggregator.hiden: [8, 16]}", "did you mean 'hidden'?"),
        ("{aggregator: [abmil, abmill]}", "did you mean 'abmil'?"),
        ("{fit.lr: {low: 1e-3, high: 2}}", "fit.lr=2.0: Input should be less than or equal to 1"),
        ("{fit.lr: {low: 0, high: 1, log: true}}", "fit.lr: log needs low above 0"),
        ("{fit.lr: {low: 1e-2, high: 1e-3}}", "fit.lr: low must be below high"),
        ("{fit.lr: {low: 1e-2, hihg: 1e-3}}", "fit.lr.hihg"),
        ("{fit.lr: 1e-2}", "fit.lr: give {low: ..., high: ...} or a list of choices"),
        ("{fit.lr: [1e-2]}", "fit.lr: choices must be two or more"),
        ("{fit.epochs: {low: 1, high: 2.5, int: true}}", "int needs whole low, high and step"),
        ("{fit.lr: {low: 0.1, high: 0.4, step: 0.2}}", "a whole number of steps"),
        ("{fit.seeds: [1, 2]}", "fit.seeds is the same for all trials"),
        ("{split.folds: [3, 5]}", "split.folds is the same for all trials"),
        ("{data.min_tissue: [0.1, 0.5]}", "data.min_tissue is the same for all trials"),
        (
            "{aggregator: [abmil, mean], aggregator.gated: [true, false]}",
            "aggregator=mean with aggregator.gated=True: aggregator 'mean' has no setting 'gated'",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_work_starts(
    space: str, told: str, shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    given = words(shared_study, tmp_path / "out", f"sweep.space={space}")
    assert told in refused([w for w in given if w != "aggregator.hidden=8"], 2)
    assert not (tmp_path / "out").exists()


def test_a_grid_of_a_range_without_steps_is_refused(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    given = words(shared_study, tmp_path / "out", RATES, "sweep.sampler=grid")
    assert "fit.lr is a range without a step" in refused(given, 2)


def test_keys_may_be_written_as_sections() -> None:
    nested = load_config([*SMALL, "sweep.space.fit.lr=[0.1, 0.2]", "sweep.space.fit.clip=[1, 2]"])
    flat = load_config([*SMALL, "sweep.space={fit.lr: [0.1, 0.2], fit.clip: [1, 2]}"])
    assert nested == flat
    assert list(flat.sweep.space) == ["fit.lr", "fit.clip"]


def test_without_a_space_rate_decay_and_dropout_are_searched() -> None:
    assert [one.key for one in space_of(load_config(SMALL))] == [
        "fit.lr",
        "fit.weight_decay",
        "aggregator.dropout",
    ]
    mean = [word for word in SMALL if not word.startswith("aggregator")]
    keys = [one.key for one in space_of(load_config([*mean, "aggregator=mean"]))]
    assert keys[:2] == ["fit.lr", "fit.weight_decay"]


def test_values_that_cannot_be_fitted_are_failed_trials_with_their_reason(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    odd = ("sweep.space={aggregator.hidden: [8, 9]}", "sweep.sampler=grid", "aggregator.heads=2")
    assert run_command(words(shared_study, out, *odd)) == 0
    rows = table(out)
    assert [row["state"] for row in rows] == ["complete", "failed"]
    assert "heads=2 does not divide hidden=9" in rows[1]["reason"]
    assert journal(out).get_trials()[1].state.name == "FAIL"
    every = ("sweep.space={aggregator.hidden: [7, 9]}", *odd[1:])
    told = refused(words(shared_study, tmp_path / "none", *every), 1)
    assert "no trial of 2 could be completed" in told
    assert "does not divide" in told


def test_a_fit_that_diverges_fails_its_trial_only(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_cell = fitting.train_cell

    def diverging(cell: Any, read: Any) -> Any:
        if cell.config.fit.lr == 0.1:
            raise TrainingError("the loss of epoch 1 is not finite")
        return train_cell(cell, read=read)

    monkeypatch.setattr(fitting, "train_cell", diverging)
    out = tmp_path / "out"
    grid = ("sweep.space={fit.lr: [0.1, 0.01]}", "sweep.sampler=grid")
    assert run_command(words(shared_study, out, *grid)) == 0
    rows = table(out)
    assert [row["state"] for row in rows] == ["failed", "complete"]
    assert rows[0]["reason"] == "fold0-seed0: the loss of epoch 1 is not finite"
    assert any("1 trial failed" in warning for warning in results_of(out)["warnings"])


def test_splits_without_validation_are_refused(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "splits.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["slide_id", "patient_id", "fold", "part"])
        for row in study.rows:
            writer.writerow(
                [row.slide_id, row.patient_id, 0, "test" if row.site == "z" else "train"]
            )
    told = refused(words(study, tmp_path / "out", RATES, "--splits", path), 5)
    assert "has no validation part" in told


def test_without_optuna_one_line_says_what_to_install(
    shared_study: Study, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else find_spec(name)
    )
    assert "pip install 'wsi[sweep]'" in refused(words(shared_study, tmp_path / "out"), 2)


def test_a_dry_run_says_space_fits_and_hours_and_leaves_nothing(
    shared_study: Study, tmp_path: Path, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = words(shared_study, out, RATES, "--trials", 7, "--dry-run", settings=FOLDS)
    plan = said_json(given)
    assert (plan["trials"], plan["fits"]) == (7, 21)
    assert plan["seconds_each"] > 0
    assert plan["space"]["fit.lr"] == {"low": 1e-4, "high": 0.1, "log": True}
    assert not out.exists()


@pytest.mark.parametrize(
    ("one", "drawn", "edge"),
    [
        (RangeSpec(low=1e-4, high=1e-1, log=True), 1.1e-4, "lowest"),
        (RangeSpec(low=1e-4, high=1e-1, log=True), 1e-3, None),
        (RangeSpec(low=1e-4, high=1e-1, log=True), 9e-2, "highest"),
        (RangeSpec(low=0, high=1), 0.01, None),
        (RangeSpec(low=0, high=1), 0.99, "highest"),
        ((0.1, 0.2, 0.3), 0.3, "highest"),
        ((0.1, 0.2, 0.3), 0.2, None),
        ((0.0, 0.2, 0.3), 0.0, None),
        ((1, 2), 2, None),
        (("a", "b", "c"), "c", None),
    ],
)
def test_an_edge_is_where_a_better_value_may_lie_beyond(
    one: Any, drawn: Any, edge: str | None
) -> None:
    is_range = isinstance(one, RangeSpec)
    made = Dimension("k", one if is_range else None, {} if is_range else {v: v for v in one})
    assert made.edge(drawn) == edge
