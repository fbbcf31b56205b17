"""The page of results: tables of what the fits predicted, around a reading written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classic.cells import Cell
from benchmarks.classic.digits import found_nines
from benchmarks.classic.figures import Estimate, Folds, corrected, of_floor, of_model
from benchmarks.classic.recipe import DIGITS, MODELS, PUBLISHED
from benchmarks.evidence.page import table
from wsi.files import publish_bytes

_PARTS = Path(__file__).with_name("reading")  # text around the tables, by name of the part
_MARGIN = 0.02  # of AUC, below the floor
_ROUNDING = 1e-9

Json = dict[str, Any]
Fits = Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class Compared:
    """A classic set: every model, and the floor, on the same folds."""

    name: str
    models: Mapping[str, Folds]
    floor: Folds
    smaller_floor: Folds


def write(path: Path, fits: Fits, study: Path) -> None:
    """Write the page of all that is complete.

    Raises:
        ConfigError: a fit of `fits` is missing.
    """
    sets = [_compared(name, cells) for name, cells in fits.items() if name != DIGITS]
    parts = [_text("head")]
    if sets:
        parts += ["## Classic MIL sets", _text("classic"), _accuracies(sets), _aucs(sets)]
    if DIGITS in fits:
        parts += ["## Bags of digits: is there a nine", _text("nine"), _nines(fits[DIGITS])]
    if study.is_file():
        result = json.loads(study.read_text(encoding="utf-8"))
        parts += ["## Bags of digits: how many nines", _text("many"), _aggregators(result)]
    publish_bytes(path, ("\n\n".join(part for part in parts if part) + "\n").encode())


def _text(name: str) -> str:
    return (_PARTS / f"{name}.md").read_text(encoding="utf-8").strip()


def _compared(name: str, cells: Sequence[Cell]) -> Compared:
    by_model = {model: [cell for cell in cells if cell.model == model] for model in MODELS}
    models = {model: of_model(each) for model, each in by_model.items()}
    first = next(iter(by_model.values()))
    return Compared(name, models, of_floor(first), of_floor(first, whole=False))


def _accuracies(sets: Sequence[Compared]) -> str:
    header = [
        "set",
        "model",
        "accuracy",
        "standard error",
        "sd of folds",
        "sd of repetitions",
        "published",
        "less published",
    ]
    rows = [row for one in sets for row in _accuracy_rows(one)]
    return "Accuracy.\n\n" + table(header, rows)


def _accuracy_rows(one: Compared) -> Iterator[list[str]]:
    for model, folds in {**one.models, "floor": one.floor}.items():
        values = folds.accuracy
        J, sd = len(values), values.std(ddof=1)
        published = PUBLISHED[one.name].get(model)
        less = corrected(values - (published or 0.0), folds.ratio)
        yield [
            one.name,
            model,
            f"{values.mean():.3f}",
            f"{sd / np.sqrt(J):.3f}",
            f"{sd:.3f}",
            _sd(folds.by_repetition(values)),
            "" if published is None else f"{published:.3f}",
            "" if published is None else _signed(less),
        ]


def _aucs(sets: Sequence[Compared]) -> str:
    header = ["set", "model", "AUC", "sd of folds", "less floor", f"not below floor − {_MARGIN:g}"]
    rows = [row for one in sets for row in _auc_rows(one)]
    return "AUC, mean over folds; differences are paired by fold.\n\n" + table(header, rows)


def _auc_rows(one: Compared) -> Iterator[list[str]]:
    floors = {"floor": one.floor, "floor, training part alone": one.smaller_floor}
    for model, folds in {**one.models, **floors}.items():
        less = corrected(folds.auc - one.floor.auc, folds.ratio)
        judged = ("yes" if less.value >= -_MARGIN - _ROUNDING else "no") if model == "gated" else ""
        yield [
            one.name,
            model,
            f"{folds.auc.mean():.4f}",
            f"{folds.auc.std(ddof=1):.3f}",
            "" if model == "floor" else _signed(less, digits=4),
            judged,
        ]


def _nines(cells: Sequence[Cell]) -> str:
    found = found_nines(cells)
    rows = [
        [what, f"{v.mean():.3f}", f"{v.std(ddof=1) if len(v) > 1 else 0:.3f}", f"{v.min():.3f}"]
        for what, v in (
            ("bags: AUC of the test part", found.auc),
            ("tiles: AUC of attention inside a positive bag", found.within),
            ("tiles: AUC of attention over all tiles of positive bags", found.pooled),
        )
    ]
    fits = len(found.auc)
    said = f"{fits} fits (folds times seeds), {found.bags} positive test bags looked into."
    return f"{said}\n\n{table(['figure', 'mean', 'sd of fits', 'lowest fit'], rows)}"


def _aggregators(study: Json) -> str:
    (result,) = study["selections"].values()
    f1, auc = result["metrics"]["macro_f1"], result["metrics"]["auc"]
    other = {run["name"]: run for run in auc["runs"]}
    less = {d["name"]: d for d in f1["differences"]}
    header = ["aggregator", "rate", "macro-F1", "sd of seeds", "interval", "AUC", "less abmil"]
    header.append("p (Holm)")
    rows = []
    for run in sorted(f1["runs"], key=lambda run: -run["value"]):
        name = run["name"]
        chosen, found = result["arms"][name], less.get(name)
        rows.append(
            [
                name,
                f"{chosen['rate']:g}" + (" (edge)" if chosen["edge"] else ""),
                f"{run['value']:.3f}",
                f"{run['seeds_sd']:.3f}",
                f"[{run['low']:.3f}, {run['high']:.3f}]",
                f"{other[name]['value']:.3f}",
                _signed(Estimate(found["value"], found["low"], found["high"])) if found else "",
                f"{found['p_holm']:.3f}" if found else "",
            ]
        )
    rates = ", ".join(f"{rate:g}" for rate in study["rates"])
    minutes = study["fits"]["seconds"] / 60
    said = (
        f"{f1['n']} test bags, {len(study['seeds'])} seeds, rates {rates} tried on validation, "
        f"{study['fits']['all']} fits of {study['epochs']} epochs, {study['bags_per_step']} bags "
        f"per step, {minutes:.0f} minutes of fits one after another."
    )
    return f"{said}\n\n{table(header, rows)}"


def _sd(values: np.ndarray) -> str:
    return f"{values.std(ddof=1):.3f}" if len(values) > 1 else "–"


def _signed(estimate: Estimate, digits: int = 3) -> str:
    of = f"+.{digits}f"
    text = f"{estimate.value:{of}} [{estimate.low:{of}}, {estimate.high:{of}}]"
    return text.replace("-", "−")
