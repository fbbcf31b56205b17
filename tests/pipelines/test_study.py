"""`wsi study`: what is fitted, chosen on validation, compared on test, shared and resumed."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from pipelines.cli import run_command
from pipelines.config import load_config, read_config
from pipelines.study.choices import Standing, best, choose_rates
from pipelines.study.folder import StudyDir
from pipelines.study.plan import check_arms
from wsi.errors import ConfigError
from wsi.files import TEMPORARY_PREFIX
from wsi.training import load

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]

CLASSES = ["normal", "itc", "macro"]
COLUMNS = [f"p_{name}" for name in CLASSES]
ARMS = ["ce", "balanced-ce", "ncmi"]
RATES = [0.003, 0.03]
HEADLINE = "study.metrics=[macro_f1]"
SMALL = (
    "data.classes=[normal,itc,macro]",
    "split.kind=sites",
    "split.test=[z]",
    "split.val.fraction=0.5",
    "fit.epochs=2",
    "aggregator.hidden=8",
    "evaluate.replicates=100",
    "study.arms=[ce,balanced-ce,ncmi]",
    "study.rates=[0.003,0.03]",
    "study.controls=[ce]",
    "fit.seeds=2",
    "evaluate.floors=true",
)


def words(study: Study, out: Path, *more: object) -> list[str]:
    """Return the words of a small study with two seeds."""
    given = [*SMALL, *(str(w) for w in more if "=" in str(w))]
    flags = [str(w) for w in more if "=" not in str(w)]
    where = ["--cohort", str(study.cohort), "--bags", str(study.bags), "--out", str(out)]
    return ["study", *given, *where, "--allow-few-seeds", *flags]


@pytest.fixture(scope="session")
def done(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study; never written to."""
    out = tmp_path_factory.mktemp("studies") / "out"
    assert run_command(words(shared_study, out)) == 0
    return out


@pytest.fixture(scope="session")
def results(done: Path) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"results.json holds {name}")

    return json.loads((done / "results.json").read_text(), parse_constant=refuse)


def cells(out: Path) -> dict[tuple[str, str, float, int, int], Path]:
    """Return the cell folders by selection, arm, rate, fold and seed."""
    found = {}
    for path in sorted((out / "cells").glob("*/*/*/fold*-seed*/done.json")):
        selection, arm, rate, cell, _ = path.relative_to(out / "cells").parts
        fold, _, seed = cell.removeprefix("fold").partition("-seed")
        found[selection, arm, float(rate), int(fold), int(seed)] = path.parent
    return found


def predicted(folder: Path, part: str) -> tuple[list[str], np.ndarray]:
    """Return slide ids and probabilities (n, C) of one part of a fit."""
    with (folder / "predictions.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["part"] == part]
    p = np.array([[float(row[name]) for name in COLUMNS] for row in rows])
    return [row["slide_id"] for row in rows], p


def macro_f1(y: list[str], p: np.ndarray) -> float:
    decided = [CLASSES[k] for k in p.argmax(1)]
    return float(f1_score(y, decided, labels=CLASSES, average="macro"))


def done_of(folder: Path) -> Any:
    return json.loads((folder / "done.json").read_text())


def times(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (out / "cells").rglob("*.*") if p.is_file()}


def chosen_rates(results: Any) -> dict[tuple[str, str], float]:
    return {
        (selection, arm): about["rate"]
        for selection, found in results["selections"].items()
        for arm, about in found["arms"].items()
    }


def part_of(out: Path, selection: str) -> dict[str, str]:
    with (out / f"splits-{selection}.csv").open(newline="") as handle:
        return {row["slide_id"]: row["part"] for row in csv.DictReader(handle)}


# -- what is fitted ----------------------------------------------------------------------------


def test_every_arm_tries_every_rate_and_is_fitted_with_every_seed_at_its_best(
    done: Path, results: Any
) -> None:
    chosen = chosen_rates(results)
    expected = {
        (selection, arm, rate, 0, 0)
        for selection in ("patient", "site")
        for arm in ARMS
        for rate in RATES
    } | {(selection, arm, rate, 0, 1) for (selection, arm), rate in chosen.items()}
    assert set(cells(done)) == expected
    assert results["fits"] == results["fits"] | {"rates": 12, "final": 12, "all": 18, "failed": []}


def test_both_ways_of_validating_test_the_same_slides(done: Path, shared_study: Study) -> None:
    patient, site = part_of(done, "patient"), part_of(done, "site")
    tested = {row.slide_id for row in shared_study.rows if row.site == "z"}
    assert {s for s, part in patient.items() if part == "test"} == tested
    assert {s for s, part in site.items() if part == "test"} == tested
    of = {row.slide_id: row for row in shared_study.rows}
    assert len({of[s].site for s, part in site.items() if part == "val"}) == 1
    assert {of[s].site for s, part in patient.items() if part == "val"} == {"x", "y"}
    owners = defaultdict(set)
    for slide_id, part in patient.items():
        owners[of[slide_id].patient_id].add(part)
    assert all(len(parts) == 1 for parts in owners.values())


def test_validation_figures_are_those_of_the_validation_predictions(
    done: Path, shared_study: Study
) -> None:
    label = {row.slide_id: row.label for row in shared_study.rows}
    for folder in cells(done).values():
        slides, p = predicted(folder, "val")
        y = [label[s] for s in slides]
        f1 = macro_f1(y, p)
        assert done_of(folder)["macro_f1"] == pytest.approx(f1)
        scores = np.log(p)[None] / np.geomspace(0.05, 20, 4000)[:, None, None]
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        codes = [CLASSES.index(name) for name in y]
        nll = -log_p[:, np.arange(len(y)), codes].mean(-1)
        assert done_of(folder)["nll"] == pytest.approx(nll.min(), abs=1e-4)
        auc = roc_auc_score(codes, p, multi_class="ovr", labels=range(len(CLASSES)))
        assert done_of(folder)["monitor"] == pytest.approx(auc)


# -- what is chosen, and on what ---------------------------------------------------------------


def test_the_rate_is_the_best_of_the_cells_on_validation(done: Path, results: Any) -> None:
    by_rate = defaultdict(list)
    for (selection, arm, rate, _, seed), folder in cells(done).items():
        if seed == 0:
            by_rate[selection, arm, rate].append(done_of(folder))
    for (selection, arm), rate in chosen_rates(results).items():
        keys = {}
        for tried in RATES:
            fits = by_rate[selection, arm, tried]
            monitor = sum(f["monitor"] for f in fits) / len(fits)
            keys[tried] = (round(monitor, 9), -sum(f["nll"] for f in fits) / len(fits))
        assert rate == max(keys, key=lambda tried: keys[tried])


def test_the_rival_is_the_best_rival_on_validation(done: Path, results: Any) -> None:
    for selection, found in results["selections"].items():
        keys = {}
        for arm in ("ce", "balanced-ce"):
            rate = found["arms"][arm]["rate"]
            fits = [done_of(cells(done)[selection, arm, rate, 0, seed]) for seed in (0, 1)]
            keys[arm] = tuple(np.mean([[f["monitor"], -f["nll"]] for f in fits], axis=0))
        assert found["rival"] == max(keys, key=lambda arm: keys[arm])
        assert {d["minus"] for d in found["metrics"]["macro_f1"]["differences"]} == {found["rival"]}


def test_labels_of_the_test_part_influence_no_choice_and_no_fit(
    study: Study, done: Path, results: Any, tmp_path: Path
) -> None:
    swapped = {"normal": "itc", "itc": "macro", "macro": "normal"}
    study.write_cohort(
        [replace(r, label=swapped[r.label]) if r.site == "z" else r for r in study.rows]
    )
    out = tmp_path / "flipped"
    assert run_command(words(study, out, HEADLINE)) == 0
    flipped = json.loads((out / "results.json").read_text())
    assert chosen_rates(flipped) == chosen_rates(results)
    for selection in ("patient", "site"):
        before, after = (r["selections"][selection] for r in (results, flipped))
        assert after["rival"] == before["rival"]
        old, new = (s["metrics"]["macro_f1"]["runs"] for s in (before, after))
        assert [run["value"] for run in old] != [run["value"] for run in new]
    for key, folder in cells(out).items():
        same = cells(done)[key] / "predictions.csv"
        assert (folder / "predictions.csv").read_bytes() == same.read_bytes()


def standing(rate: float, monitor: float, nll: float, failed: str | None = None) -> Standing:
    return Standing("patient", "ce", rate, 4, monitor, nll, 0.5, failed)


def test_equal_monitors_go_to_the_smaller_nll_and_failed_rates_are_out() -> None:
    found = [standing(1, 0.9, 0.5), standing(2, 0.1 + 0.2 + 0.6, 0.4), standing(3, 0.8, 0.1)]
    winner = best(found, lower=False)
    assert winner is not None
    assert winner.rate == 2
    lowest = best(found, lower=True)
    assert lowest is not None
    assert lowest.rate == 3
    failed = [*found[:1], replace(found[1], failed="diverged", monitor=None)]
    left = best(failed, lower=False)
    assert left is not None
    assert left.rate == 1
    assert best([replace(found[0], failed="diverged")], lower=False) is None


@pytest.mark.parametrize(("rate", "edge"), [(1.0, "lowest"), (2.0, None), (3.0, "highest")])
def test_a_best_rate_at_the_edge_of_the_grid_is_told(rate: float, edge: str | None) -> None:
    found = [standing(r, 0.9 if r == rate else 0.5, 0.5) for r in (1.0, 2.0, 3.0)]
    chosen = choose_rates(found, [1.0, 2.0, 3.0], lower=False)
    assert chosen["patient"]["ce"].edge == edge


# -- what is compared --------------------------------------------------------------------------


def test_test_figures_are_those_of_scikit_learn_over_seeds(
    done: Path, results: Any, shared_study: Study
) -> None:
    label = {row.slide_id: row.label for row in shared_study.rows}
    for selection, found in results["selections"].items():
        for run in found["metrics"]["macro_f1"]["runs"]:
            rate, values = found["arms"][run["name"]]["rate"], []
            for seed in (0, 1):
                folder = cells(done)[selection, run["name"], rate, 0, seed]
                slides, p = predicted(folder, "test")
                values.append(macro_f1([label[s] for s in slides], p))
            assert run["value"] == pytest.approx(np.mean(values))
            assert run["seeds_sd"] == pytest.approx(np.std(values, ddof=1))
            assert list(run["by_seed"].values()) == pytest.approx(values)


def test_what_is_no_rival_is_compared_with_the_control_too(results: Any) -> None:
    for found in results["selections"].values():
        for scores in found["metrics"].values():
            value = {run["name"]: run["value"] for run in scores["runs"]}
            expected = {} if found["rival"] == "ce" else {"ce": ["ncmi"]}
            assert {k: [d["name"] for d in v] for k, v in scores["controls"].items()} == expected
            for row in (d for rows in scores["controls"].values() for d in rows):
                assert row["value"] == pytest.approx(value["ncmi"] - value["ce"])
                assert row["p_holm"] == row["p"]


def test_holm_is_over_all_arms(results: Any) -> None:
    for found in results["selections"].values():
        for scores in found["metrics"].values():
            rows = [d for d in scores["differences"] if d["p"] is not None]
            assert {d["name"] for d in scores["differences"]} == set(ARMS) - {found["rival"]}
            for row in rows:
                # Reject at a level exactly when all smaller p pass their own step.
                ranked = sorted(d["p"] for d in rows)
                steps = [
                    min(1.0, (len(ranked) - k) * p) for k, p in enumerate(ranked) if p <= row["p"]
                ]
                assert row["p_holm"] == pytest.approx(max(steps))


def test_the_table_and_the_page_hold_every_arm(done: Path, results: Any) -> None:
    with (done / "results.csv").open(newline="") as handle:
        tests = [row for row in csv.DictReader(handle) if row["kind"] == "test"]
    assert len(tests) == 2 * 3 * 3
    for row in tests:
        runs = results["selections"][row["selection"]]["metrics"][row["metric"]]["runs"]
        run = next(run for run in runs if run["name"] == row["arm"])
        assert float(row["value"]) == pytest.approx(run["value"])
    page, text = (done / "report.html").read_text(), (done / "results.md").read_text()
    for note in (note for found in results["selections"].values() for note in found["notes"]):
        assert f"- {note}" in text
    for arm in ARMS:
        assert arm in page
        assert f"| {arm}" in text
    assert page.count("<svg") == 2 * (3 + 1)  # each metric, and accuracy against NCMI
    assert "://" not in page.replace("http://www.w3.org", "")


def test_predictions_of_every_arm_are_left_for_other_commands(
    done: Path, results: Any, said_json: Json
) -> None:
    for selection, found in results["selections"].items():
        tables = [done / "predictions" / selection / f"{arm}.csv" for arm in ARMS]
        said = said_json(["compare", *tables, "--replicates", "100"])
        value = {run["name"]: run["value"] for run in found["metrics"]["macro_f1"]["runs"]}
        assert {run["name"]: run["value"] for run in said["runs"]} == {
            f"{arm}.csv": pytest.approx(value[arm]) for arm in ARMS
        }


def test_the_best_arm_on_validation_stands_beside_floors(
    done: Path, results: Any, said_json: Json
) -> None:
    page = (done / "report.html").read_text()
    for selection, found in results["selections"].items():
        arm = found["best_on_validation"]
        assert found["floors"]["run"] == arm
        tables = [done / "floors" / "site.csv", done / "predictions" / selection / f"{arm}.csv"]
        said = said_json(["compare", *tables, "--metric", "auc", "--replicates", "100"])
        score = found["floors"]["scores"]["site"]["auc"]
        assert score["value"] == said["runs"][0]["value"]
        assert score["run_minus_floor"]["value"] == said["differences"][0]["value"]
        assert f"{arm}, best on validation: {found['floors']['note']}" in page
        assert f"{arm} \u2212 floor" in page
    assert results["site_from_features"]["n_sites"] == 3


def test_predictions_of_arms_say_which_prior_they_are_of(done: Path, shared_study: Study) -> None:
    label = {row.slide_id: row.label for row in shared_study.rows}
    for selection in ("patient", "site"):
        parts = part_of(done, selection)
        counts = Counter(label[s] for s, part in parts.items() if part == "train")
        for arm, prior in (("ce", "training"), ("balanced-ce", "uniform"), ("ncmi", None)):
            sidecar = json.loads((done / "predictions" / selection / f"{arm}.json").read_text())
            assert sidecar["head"] == {
                "predicts_prior": prior,
                "training_counts": {"0": [counts[name] for name in CLASSES]},
            }


def test_accuracy_stands_against_ncmi_for_every_arm_and_seed(
    done: Path, results: Any, shared_study: Study
) -> None:
    label = {row.slide_id: row.label for row in shared_study.rows}
    for selection, found in results["selections"].items():
        points = found["accuracy_ncmi"]["points"]
        assert [(p["run"], p["seed"]) for p in points] == [(a, s) for a in ARMS for s in (0, 1)]
        for point in points:
            rate = found["arms"][point["run"]]["rate"]
            folder = cells(done)[selection, point["run"], rate, 0, point["seed"]]
            slides, p = predicted(folder, "test")
            hits = [CLASSES[k] == label[s] for s, k in zip(slides, p.argmax(1), strict=True)]
            assert point["accuracy"] == pytest.approx(np.mean(hits))


def test_test_predictions_are_scored_against_the_truth_column(
    study: Study, tmp_path: Path, done: Path
) -> None:
    clean = [row.label for row in study.rows]
    noisy = [replace(r, label="itc") if r.slide_id == "z-normal-0-0" else r for r in study.rows]
    study.write_cohort(noisy, clean=clean)
    out = tmp_path / "truth"
    more = ["study.truth=clean", "study.selection=[patient]", HEADLINE]
    assert run_command(words(study, out, *more)) == 0
    found = json.loads((out / "results.json").read_text())["selections"]["patient"]
    before = json.loads((done / "results.json").read_text())["selections"]["patient"]
    headline = before["metrics"]["macro_f1"]
    assert found["metrics"] == {"macro_f1": headline}  # the noisy label is of a test slide only


# -- running again, and side by side -----------------------------------------------------------


def test_a_second_run_fits_nothing_and_says_the_same(
    shared_study: Study, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "again"))
    before = times(out)
    results = (out / "results.json").read_bytes()
    assert run_command(words(shared_study, out)) == 0
    said = capsys.readouterr().err
    assert "rates: 12 of 12 fits are done already" in said
    assert "0 fits to do" in said
    assert times(out) == before
    assert (out / "results.json").read_bytes() == results


@pytest.mark.parametrize("lost", ["done.json", "predictions.csv"])
def test_a_lost_fit_alone_is_made_again_and_the_same(
    shared_study: Study, done: Path, tmp_path: Path, lost: str
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "again"))
    folder = out / "cells" / "site" / "ncmi" / "0.003" / "fold0-seed0"
    predictions = (folder / "predictions.csv").read_bytes()
    (folder / lost).unlink()
    others = {k: v for k, v in times(out).items() if not k.startswith(str(folder))}
    assert run_command(words(shared_study, out, HEADLINE)) == 0
    assert (folder / "predictions.csv").read_bytes() == predictions
    assert {k: v for k, v in times(out).items() if not k.startswith(str(folder))} == others


def test_more_arms_and_seeds_may_join_but_an_arm_may_not_change(
    shared_study: Study, done: Path, tmp_path: Path, refused: Refused
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "more"))
    changed = "study.arms=[ce,balanced-ce,{label: ncmi, name: ncmi, temperature: 0.3}]"
    assert "arm ncmi" in refused(words(shared_study, out, changed), 2)
    assert "fit.epochs 2 -> 3" in refused(words(shared_study, out, "fit.epochs=3"), 2)
    before = times(out)
    more = ["fit.seeds=3", "study.selection=[patient]", HEADLINE]
    assert run_command(words(shared_study, out, *more)) == 0
    after = times(out)
    assert {k: v for k, v in after.items() if k in before} == before
    assert {key[4] for key in cells(out)} == {0, 1, 2}


def fail(folder: Path, why: str = "epoch 0, step 0: loss nan") -> None:
    """Make a fit one that diverged."""
    (folder / "done.json").write_text(json.dumps(done_of(folder) | {"failed": why}))


def compared(shared_study: Study, out: Path) -> Any:
    """Return the results of patients' validation after a rerun that fits nothing."""
    more = ["study.selection=[patient]", HEADLINE]
    before = times(out)
    assert run_command(words(shared_study, out, *more)) == 0
    assert times(out) == before
    return json.loads((out / "results.json").read_text())


def test_an_arm_with_a_failed_final_fit_is_left_out_and_named(
    shared_study: Study, done: Path, results: Any, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "failed"))
    rate = results["selections"]["patient"]["arms"]["ncmi"]["rate"]
    fail(cells(out)["patient", "ncmi", rate, 0, 1])
    found = compared(shared_study, out)
    patient = found["selections"]["patient"]
    assert [run["name"] for run in patient["metrics"]["macro_f1"]["runs"]] == ["ce", "balanced-ce"]
    assert {p["run"] for p in patient["accuracy_ncmi"]["points"]} == {"ce", "balanced-ce"}
    assert any("ncmi, selection by patient: left out, a final" in w for w in found["warnings"])
    assert found["fits"]["failed"] == [f"patient/ncmi/{rate:g}/fold0-seed1"]
    assert "ncmi" in (out / "report.html").read_text()


def test_a_failed_rate_is_out_and_an_arm_without_any_too(
    shared_study: Study, done: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "failed"))
    shutil.rmtree(out / "cells" / "site")
    for (_, arm, _, _, seed), folder in cells(out).items():
        if arm == "balanced-ce" and seed == 0:
            fail(folder)
    found = compared(shared_study, out)
    patient = found["selections"]["patient"]
    assert set(patient["arms"]) == {"ce", "ncmi"}
    assert patient["rival"] == "ce"
    assert [d["minus"] for d in patient["metrics"]["macro_f1"]["differences"]] == ["ce"]
    assert any("a fit failed at every rate (epoch 0, step 0" in w for w in found["warnings"])


def test_without_any_rival_there_is_a_page_and_a_warning(
    shared_study: Study,
    done: Path,
    results: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Path(shutil.copytree(done, tmp_path / "failed"))
    for arm in ("ce", "balanced-ce"):
        rate = results["selections"]["patient"]["arms"][arm]["rate"]
        fail(cells(out)["patient", arm, rate, 0, 1])
    found = compared(shared_study, out)
    assert found["selections"]["patient"]["rival"] is None
    assert found["selections"]["patient"]["metrics"] == {}
    assert "selection by patient: nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    "killed_after", [["environment.json"], ["environment.json", "config.yaml"]]
)
def test_a_study_killed_while_it_began_goes_on(
    done: Path, tmp_path: Path, killed_after: list[str]
) -> None:
    for name in (*killed_after, "study.log"):
        shutil.copy(done / name, tmp_path / name)
    (tmp_path / f"{TEMPORARY_PREFIX}here-1-2-3-config.yaml").write_text("seed")
    config = read_config(done / "config.yaml")
    StudyDir(tmp_path).begin(config, {"slides": 3})
    assert json.loads((tmp_path / "inputs.json").read_text()) == {"slides": 3}
    (tmp_path / "inputs.json").unlink()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="neither empty nor a study"):
        StudyDir(tmp_path).begin(config, {"slides": 3})


@pytest.mark.slow
def test_two_processes_share_the_fits(shared_study: Study, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    command = [sys.executable, "-m", "pipelines.cli", *words(shared_study, out), "-v"]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    made = [line.split(": ")[0] for text in said for line in text.splitlines() if "fold0" in line]
    assert sorted(made) == sorted(set(made))
    assert set(cells(out)) == set(cells(done))
    for key, folder in cells(out).items():
        same = cells(done)[key] / "predictions.csv"
        assert (folder / "predictions.csv").read_bytes() == same.read_bytes()
    assert not list((out / "claims").glob("*.claim"))


@pytest.mark.slow
def test_worker_processes_change_nothing(shared_study: Study, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "jobs"
    assert run_command(words(shared_study, out, "--jobs", "2")) == 0
    for key, folder in cells(out).items():
        same = cells(done)[key] / "predictions.csv"
        assert (folder / "predictions.csv").read_bytes() == same.read_bytes()


# -- what is said and refused ------------------------------------------------------------------


def test_the_preset_holds_what_a_claim_about_ncmi_starts_from() -> None:
    config = load_config(["study"])
    labels = [arm.label for arm in config.study.arms]
    assert labels == ["ce", "balanced-ce", "pc_softmax", "cosine_pc", "ncmi", "ncmi_softmax"]
    assert set(check_arms(config)) == set(labels)  # all of them can be made
    assert set(config.study.rivals) == {"ce", "balanced-ce", "pc_softmax"}
    assert len(config.study.rates) == 4
    assert config.fit.seeds == tuple(range(8))


def test_until_rates_stops_before_any_final_fit(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    out = tmp_path / "rates"
    more = ["study.arms=[ce,ncmi]", "study.selection=[patient]", "--until", "rates"]
    found = said_json(words(shared_study, out, *more, "study.keep_models=true"))
    assert found["stage"] == "rates"
    assert set(found["chosen"]["patient"]) == {"ce", "ncmi"}
    assert {key[4] for key in cells(out)} == {0}
    assert not (out / "results.json").exists()
    for (_, arm, *_), folder in cells(out).items():
        model, origin = load(folder / "model.safetensors")
        assert model.card.objective == arm
        if model.objective.rule == "own":  # else the loop watched another rule than decides
            assert origin.value == pytest.approx(done_of(folder)["monitor"])


def test_a_dry_run_counts_fits_and_writes_nothing(
    shared_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words(shared_study, tmp_path / "dry", "--dry-run")) == 0
    said = capsys.readouterr().err
    assert "= 12 fits of 2 epochs" in said
    assert "12 fits, 6 of them new" in said
    assert "18 fits to do" in said
    assert not (tmp_path / "dry").exists()


def test_few_seeds_are_completed_or_warned_of(
    shared_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(shared_study, tmp_path / "dry", "--dry-run")
    line.remove("--allow-few-seeds")
    assert run_command([*line, "fit.seeds=[100,101]"]) == 0
    assert "the seeds are 100, 101, 102, 103, 104, 105, 106, 107" in capsys.readouterr().err
    assert run_command(words(shared_study, tmp_path / "dry", "--dry-run")) == 0
    assert "2 seeds, fewer than 8" in capsys.readouterr().err


def test_without_three_sites_selection_by_site_is_left_out_with_a_note(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_cohort([replace(row, site="x") for row in study.rows])
    out = tmp_path / "single"
    more = ["split.kind=kfold", "split.folds=2", "split.test=[]", "study.arms=[ce,ncmi]", HEADLINE]
    assert run_command(words(study, out, *more, "study.rates=[0.01]", "fit.seeds=1")) == 0
    assert "no selection by site: the cohort has 1 sites" in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert set(results["selections"]) == {"patient"}
    assert any("no selection by site" in warning for warning in results["warnings"])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("study.arms=[ce,ncmy]", "did you mean 'ncmi'"),
        ("study.arms=[ce,{name: ncmi, temprature: 1}]", "did you mean 'temperature'"),
        ("study.arms=[ce,ce]", "must have different labels, and ce is there twice"),
        ("study.arms=[ce,{label: a/b, name: ncmi}]", "pattern"),
        ("study.metrics=[makro_f1]", "did you mean 'macro_f1'"),
        ("study.rivals=[abmil]", "names none of the arms"),
        ("study.rate_seeds=3", "lower it"),
        ("objective=pc_softmax", "objective=pc_softmax acts on no arm"),
    ],
)
def test_bad_settings_are_refused_before_any_fit(
    shared_study: Study, tmp_path: Path, refused: Refused, setting: str, said: str
) -> None:
    out = tmp_path / "refused"
    assert said in refused(words(shared_study, out, setting), 2)
    assert not (out / "cells").exists()


def test_settings_that_contradict_each_other_are_refused_before_any_fit(
    shared_study: Study, tmp_path: Path, refused: Callable[..., str]
) -> None:
    arms = "study.arms=[ce,{label: moving, name: ncmi, centroids: learned}]"
    said = refused(words(shared_study, tmp_path / "out", arms), 2)
    assert "moving" in said
    assert "centroid_lr" in said
    assert not (tmp_path / "out").exists()


def test_few_seeds_and_two_validation_figures_are_explained_wherever_figures_stand(
    done: Path,
) -> None:
    warning = "2 seeds, fewer than 8: differences are exploratory"
    found = json.loads((done / "results.json").read_text())
    assert any(warning in text for text in found["warnings"])
    for scores in found["selections"]["patient"]["metrics"].values():
        assert "bootstrap test" in scores["p_from"]
    for name in ("results.md", "report.html"):
        text = (done / name).read_text()
        assert warning in text
        assert "those of the rates tried over the 1 seed that tunes the rate" in text
        assert "two-sided bootstrap test" in text


def test_notes_that_hold_for_every_selection_are_said_once(done: Path) -> None:
    lines = [line.split(" ", 1)[1] for line in (done / "study.log").read_text().splitlines()]
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == len(set(notes))
    assert any("bootstrap test" in note for note in notes)
    assert any("as measured under this machine's load" in line for line in lines)
