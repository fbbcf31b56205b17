"""Rows of every table, as text that is ready to print."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from wsi.evaluation import METRICS
from wsi.findings import counted
from wsi.report.cells import (
    MINUS,
    UNKNOWN,
    Cell,
    Footnotes,
    Json,
    Table,
    interval,
    metric_title,
    metrics_of,
    number,
    p_value,
    percent,
    short_title,
    worst_sites,
)
from wsi.report.summary import Epochs, PartRow, RunSummary
from wsi.training.alarms import raised_over

_SITE_METRICS = 3  # as many as fit beside each other with their intervals
_CMI_NOTE = "how far predictions of this class stray from their mean, in nats (0: not at all)"
_WHY_UNDEFINED = {
    "precision": "never predicted",
    "recall": "no slide of this class",
    "auc": "no slide of this class, or of no other",
    "average_precision": "no slide of this class, or of no other",
}


def headline(metrics: Json) -> Table:
    """Return every metric with its interval, the spread over seeds, and what it was made of."""
    notes = Footnotes()
    several = metrics["ensemble"] is not None
    columns = ["Metric", f"Value [{percent(metrics['level'])} interval]"]
    columns += ["SD over seeds", "Ensemble of seeds"] if several else []
    columns += ["Pooled over folds", "Folds", rows_title(metrics), "Patients"]
    rows = []
    for name in metrics_of(metrics):
        score = metrics[name]
        row = [Cell(metric_title(name)), _score_cell(score, notes)]
        if several:
            row.append(Cell(number(score["seeds_sd"]), score["seeds_sd"]))
            row.append(_score_cell(metrics["ensemble"][name], notes))
        rows.append((*row, *_fold_cells(score, notes), *_counts(score)))
    caption = "All metrics, mean over seeds" if several else "All metrics"
    return Table(caption, tuple(columns), tuple(rows), tuple(notes.texts))


def _score_cell(score: Json, notes: Footnotes, remark: str = "") -> Cell:
    return Cell(interval(score), score["value"], notes.numbers(score.get("note", "")), remark)


def _fold_cells(score: Json, notes: Footnotes) -> tuple[Cell, Cell]:
    if "folds" not in score:
        why = notes.numbers("decisions of all folds are pooled, so there is no second figure")
        return Cell(UNKNOWN, notes=why), Cell("pooled")
    defined = f"{score['folds_defined']} of {score['folds']}"
    return Cell(number(score["pooled"]), score["pooled"]), Cell(defined, score["folds_defined"])


def _counts(group: Json) -> tuple[Cell, Cell]:
    n, patients = group["n"], group["n_patients"]
    return Cell(str(n), n), Cell(str(patients), patients)


def rows_title(of: Json) -> str:
    """Return what is counted in figures: slides, or bags where each is of a whole patient."""
    return "Bags" if of.get("scored") == "patient" else "Slides"


def by_group(metrics: Json, kind: Literal["site", "cohort"]) -> Table | None:
    """Return the metrics of each site or cohort, the worst site marked; None without groups."""
    groups = metrics["by"].get(kind)
    if not groups or (kind == "cohort" and len(groups) < 2):
        return None
    notes = Footnotes()
    names = [m for m in metrics_of(metrics) if m != "micro_f1"][:_SITE_METRICS]
    worst = metrics["worst_site"] if kind == "site" else {}
    rows = []
    for group, scores in groups.items():
        cells = [_score_cell(scores[m], notes, _worst_remark(worst.get(m), group)) for m in names]
        rows.append((Cell(group), *_counts(scores), *cells))
    columns = (kind.capitalize(), rows_title(metrics), "Patients", *(short_title(m) for m in names))
    caption = f"By {kind}, with {percent(metrics['level'])} intervals"
    unnamed = _unnamed(metrics, groups, kind, len(names), notes)
    return Table(caption, columns, tuple(rows), tuple(notes.texts), summary=unnamed)


def _unnamed(
    metrics: Json, groups: Json, kind: str, n_metrics: int, notes: Footnotes
) -> tuple[tuple[Cell, ...], ...]:
    """Return a row that counts what is of no site or cohort; none where all are."""
    n = metrics["n"] - sum(group["n"] for group in groups.values())
    if not n:
        return ()
    one = rows_title(metrics).lower().removesuffix("s")
    why = f"{counted(n, one)} {'has' if n == 1 else 'have'} no {kind} and no row of figures here"
    cells = [Cell(UNKNOWN)] * (1 + n_metrics)
    return ((Cell(f"no {kind}", notes=notes.numbers(why)), Cell(str(n), n), *cells),)


def _worst_remark(worst: Json | None, site: str) -> str:
    return "worst" if worst and site in worst_sites(worst) else ""


def by_class(metrics: Json) -> Table:
    """Return support, precision, recall, F1, AUC and average precision of each class."""
    notes = Footnotes()
    keys = ("precision", "recall", "f1", "auc", "average_precision")
    informed = metrics.get("information", {}).get("per_class")
    rows = []
    for name, figures in metrics["per_class"].items():
        cells = []
        for key in keys:
            why = _WHY_UNDEFINED.get(key, "undefined") if figures[key] is None else ""
            cells.append(Cell(number(figures[key]), figures[key], notes.numbers(why)))
        if informed:
            why = "no slide of this class" if informed[name]["cmi"] is None else _CMI_NOTE
            cells.append(_cell(informed[name]["cmi"], notes.numbers(why)))
        rows.append((Cell(name), Cell(str(figures["support"]), figures["support"]), *cells))
    columns = ("Class", "Slides", "Precision", "Recall", "F1", "AUC", "Average precision")
    columns += ("CMI",) if informed else ()
    caption = "By class, each against the rest; AUC and average precision over pooled folds"
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def information(metrics: Json) -> Table | None:
    """Return what predictions tell about labels, in nats; None of metrics from before it."""
    found = metrics.get("information")
    if not found:
        return None
    notes = Footnotes()
    bias = f"the probabilities are {found['probabilities']}"
    rows = [
        _information_row("information on the label, I(X;Y)", found["mi"], notes, bias),
        _information_row("its share of the label entropy", found["share"], notes),
        (Cell("label entropy of the slides evaluated"), _cell(found["label_entropy"]), Cell("")),
    ]
    if found["as_predicted"]:
        at = found["as_predicted"]
        why = f"at most {number(at['bound'], 3)}, reached by a perfect head at that prior"
        mi = Cell(number(at["mi"], 3), at["mi"], notes.numbers(why))
        rows.append((Cell("information before re-targeting the prior"), mi, Cell("")))
    for key, title in (("ncmi", "classes by frequency"), ("ncmi_balanced", "classes equal")):
        rows += _ncmi_rows(found[key], title, notes)
    columns = ("Quantity", f"Value [{percent(metrics['level'])} interval]", "SD over seeds")
    caption = "Information in the predictions, in nats (NCMI is a ratio)"
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def _information_row(title: str, score: Json, notes: Footnotes, also: str = "") -> tuple[Cell, ...]:
    remarks = notes.numbers("; ".join(text for text in (also, score["note"]) if text))
    value = Cell(interval(score, digits=3), score["value"], remarks)
    return Cell(title), value, Cell(number(score["seeds_sd"], 3), score["seeds_sd"])


def _ncmi_rows(found: Json, weighting: str, notes: Footnotes) -> list[tuple[Cell, ...]]:
    """Return CMI, separation and their ratio; only the last has a spread over seeds."""
    compare = "not comparable across numbers of classes, temperatures or simplex maps"
    ratio = notes.numbers("; ".join(text for text in (compare, found["note"]) if text))
    cmi, gamma = (_cell(found[key]) for key in ("cmi", "separation"))
    sd = Cell(number(found["seeds_sd"], 3), found["seeds_sd"])
    return [
        (Cell(f"CMI, I(X;P|Y), {weighting}"), cmi, Cell("")),
        (Cell(f"separation, {weighting}"), gamma, Cell("")),
        (Cell(f"NCMI, {weighting}"), _cell(found["ncmi"], ratio), sd),
    ]


def _cell(value: float | None, notes: tuple[int, ...] = ()) -> Cell:
    return Cell(number(value, 3), value, notes)


def by_fold(metrics: Json) -> Table | None:
    """Return the metrics of each fold and their mean and SD; None for a single fold."""
    folds = metrics["folds"]["each"]
    if len(folds) < 2:
        return None
    notes = Footnotes()
    names = metrics_of(metrics)
    rows = []
    for fold, scores in folds.items():
        cells = [
            Cell(number(scores[m]), scores[m], notes.numbers(_undefined_in_fold(scores[m])))
            for m in names
        ]
        rows.append((Cell(f"fold {fold}", float(fold)), *_counts(scores), *cells))
    over = metrics["folds"]["summary"]
    summary = tuple(
        (Cell(title), Cell(""), Cell(""), *(Cell(number(over[m][key])) for m in names))
        for key, title in (("mean", "mean"), ("sd", "SD"))
    )
    columns = ("Fold", "Slides", "Patients", *(short_title(m) for m in names))
    caption = "By fold, mean over seeds" if len(metrics["seeds"]) > 1 else "By fold"
    return Table(caption, columns, tuple(rows), tuple(notes.texts), summary=summary)


def _undefined_in_fold(value: float | None) -> str:
    return "undefined in this fold: only one class present" if value is None else ""


def by_seed(metrics: Json) -> Table | None:
    """Return the metrics of each seed; None for a single one."""
    if len(metrics["seeds"]) < 2:
        return None
    names = metrics_of(metrics)
    rows = tuple(
        (Cell(f"seed {seed}", float(seed)), *(Cell(number(v[m]), v[m]) for m in names))
        for seed, v in metrics["seeds"].items()
    )
    return Table("By seed", ("Seed", *(short_title(m) for m in names)), rows)


def side_by_side(runs: Sequence[RunSummary]) -> Table:
    """Return the metrics of several runs beside each other."""
    notes = Footnotes()
    names = list(dict.fromkeys(m for run in runs for m in metrics_of(run.metrics)))
    rows = []
    for name in names:
        cells = [
            _score_cell(run.metrics[name], notes)
            if name in run.metrics
            else Cell(UNKNOWN, notes=notes.numbers("not scored for this run"))
            for run in runs
        ]
        rows.append((Cell(metric_title(name)), *cells))
    what = " and ".join(sorted({rows_title(run.metrics).lower() for run in runs}))
    for key, title in (("n", what), ("n_patients", "patients")):
        rows.append((Cell(title), *(Cell(str(r.metrics[key]), r.metrics[key]) for r in runs)))
    levels = ", ".join(dict.fromkeys(percent(run.metrics["level"]) for run in runs))
    columns = ("Metric", *(run.name for run in runs))
    caption = f"Runs side by side, with {levels} intervals"
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def differences(comparison: Json) -> Table:
    """Return the paired difference of each run to the reference."""
    notes = Footnotes()
    rows = []
    about_p = notes.numbers(comparison.get("p_from", "").replace("; ", ", while "))
    for row in comparison["differences"]:
        undefined = row["undefined_replicates"]
        note = f"{counted(undefined, 'replicate')} undefined and left out" if undefined else ""
        if row["value"] is None:
            note = "undefined: the metric is undefined for a run"
        rows.append(
            (
                Cell(f"{row['name']} {MINUS} {row['minus']}"),
                Cell(interval(row, signed=True), row["value"], notes.numbers(note)),
                Cell(p_value(row["p"]), row["p"], about_p),
                Cell(p_value(row["p_holm"]), row["p_holm"]),
            )
        )
    title = METRICS[comparison["metric"]].title
    level = percent(comparison["level"])
    columns = ("Runs", f"Difference [{level} interval]", "p", "p (Holm)")
    caption = (
        f"Paired differences in {title}: "
        f"{counted(comparison['n'], rows_title(comparison).lower().removesuffix('s'))} of "
        f"{counted(comparison['n_patients'], 'patient')}, the same for all runs"
    )
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


_TESTS = {
    "delong": "DeLong",
    "mcnemar": "McNemar, exact",
    "nadeau_bengio": "Nadeau-Bengio",
}


def other_tests(comparison: Json) -> Table | None:
    """Return the classical tests of each difference; None where there are none."""
    notes = Footnotes()
    rows = []
    for row in comparison["differences"]:
        for name, test in row.get("tests", {}).items():
            marks = notes.numbers(test["note"])
            rows.append(
                (
                    Cell(f"{_TESTS.get(name, name)}: {row['name']} {MINUS} {row['minus']}"),
                    Cell(interval(test, signed=True), test["value"], marks),
                    Cell(p_value(test["p"]), test["p"]),
                )
            )
    if not rows:
        return None
    level = percent(comparison["level"])
    columns = ("Test", f"Difference [{level} interval]", "p")
    caption = "Other tests of the same differences, not corrected for their number"
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def alarms(histories: Mapping[str, Epochs]) -> Table | None:
    """Return each alarm of each training, with its epochs; None when there is none."""
    rows = [
        (
            Cell(_training_title(training)),
            Cell(raised.name),
            Cell(raised.epochs_text, raised.epochs[0]),
            Cell(f"{len(raised.epochs)} of {len(epochs)}", len(raised.epochs)),
            Cell(raised.message),
        )
        for training, epochs in histories.items()
        for raised in raised_over(epochs)
    ]
    if not rows:
        return None
    columns = (
        "Training",
        "Alarm",
        "Held in epochs",
        "Number",
        "What was seen last, and what to do",
    )
    caption = f"Alarms of {len({row[0] for row in rows})} of {counted(len(histories), 'training')}"
    return Table(caption, columns, tuple(rows), text_columns=(0, 1, 2, 4))


def _training_title(name: str) -> str:
    """Return `fold 0, seed 1` of fold0-seed1, and other names as they are."""
    found = re.fullmatch(r"fold(\d+)-seed(\d+)", name)
    return f"fold {found[1]}, seed {found[2]}" if found else name


def facts(runs: Sequence[RunSummary]) -> Table:
    """Return what was run, one column per run; facts that differ are marked."""
    keys = list(dict.fromkeys(key for run in runs for key in run.facts))
    rows = []
    for key in keys:
        values = [run.facts.get(key, UNKNOWN) for run in runs]
        remark = "differs" if len(set(values)) > 1 else ""
        rows.append((Cell(key, remark=remark), *(Cell(value) for value in values)))
    columns = ("", *(run.name for run in runs)) if len(runs) > 1 else ("", "Value")
    everywhere = tuple(range(len(runs) + 1))
    return Table("Settings and versions", columns, tuple(rows), text_columns=everywhere)


def parts(rows: Sequence[PartRow], classes: Sequence[str]) -> Table:
    """Return slides, patients and class counts of each part of each fold."""
    notes = Footnotes()
    made = []
    for row in rows:
        cells = [Cell(str(n), n) for n in (row.n_slides, row.n_patients)]
        if row.counts is None:
            why = notes.numbers("labels unknown: the cohort table is gone or was changed")
            cells += [Cell(UNKNOWN, notes=why)] * len(classes)
        else:
            counts = [row.counts.get(name, 0) for name in classes]
            cells += [Cell(str(n), n) for n in counts]
        made.append((Cell(str(row.fold), row.fold), Cell(row.part), *cells))
    columns = ("Fold", "Part", "Slides", "Patients", *classes)
    caption = "Parts of each fold: slides, patients, and slides of each class"
    return Table(caption, columns, tuple(made), tuple(notes.texts), text_columns=(0, 1))


def sites_of_parts(rows: Sequence[PartRow]) -> Table | None:
    """Return how many slides of each site are in each part; None where sites are unknown."""
    known = [row for row in rows if row.sites is not None]
    sites = sorted({site for row in known for site in row.sites or ()})
    if not sites or len(known) < len(rows):
        return None
    made = []
    for row in known:
        counts = [(row.sites or {}).get(site, 0) for site in sites]
        cells = (Cell(str(n), n) for n in counts)
        made.append((Cell(str(row.fold), row.fold), Cell(row.part), *cells))
    columns = ("Fold", "Part", *(site or "no site" for site in sites))
    caption = "Slides of each site in each part"
    return Table(caption, columns, tuple(made), text_columns=(0, 1))
