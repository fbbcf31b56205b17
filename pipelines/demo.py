"""`wsi demo`: the whole of wsi on synthetic slides, from drawing them to a report."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from shapely import points

from pipelines import compare, preprocess, train
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.rundir import RunDir
from pipelines.scoring import interval, refresh_card
from pipelines.sources import load_predictions
from pipelines.summary import read_history
from pipelines.workers import processes
from wsi.bags import open_store
from wsi.cohorts.synthetic import (
    Planned,
    plan_cohort,
    slide_path,
    write_slide_of,
    write_table,
)
from wsi.errors import ConfigError
from wsi.explain import attention_of, top_tiles
from wsi.files import publish_json
from wsi.geojson import read_geojson
from wsi.training.alarms import raised_over

RUNS = {
    "ce": ("objective=ce",),
    "ncmi": ("objective=ncmi",),
    "mean-pooling": ("objective=ce", "aggregator=mean"),
}
"""Name of each run and what it sets; mean pooling is the floor the others must beat."""

NEXT = (
    "Look at your slides: `wsi scan SLIDES`",
    "Check the plan: `wsi preprocess --slides SLIDES --out OUT --dry-run`",
    "Make bags: `wsi preprocess --slides SLIDES --out OUT`",
    "Write a table with slide_id, patient_id, label and site, then check it: "
    "`wsi cohort check cohort.csv`",
    "Train: `wsi train --cohort cohort.csv --bags OUT/bags --out RUN objective=ncmi "
    "data.classes=[a,b]`",
    "See where the evidence is: `wsi explain RUN --slides SLIDES --out MAPS`",
    "Ask fairly which objective helps: `wsi study study --cohort cohort.csv --bags OUT/bags "
    "--out STUDY data.classes=[a,b] --dry-run`",
)
"""What to do with one's own slides; commands between backticks."""

_SMALL_MODEL = ("aggregator.hidden=64",)
_TOP = 5


@dataclass(frozen=True)
class Found:
    """Share of the highest-attention tiles that lie inside a lesion, against picking at random."""

    share: float
    random: float
    slides: int


def run(out: Path, seed: int, console: Console) -> int:
    """Draw, extract, train, compare, report; end with what to type for one's own slides."""
    started = time.monotonic()
    _begin(out, seed)
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    hushed = Console(hushed=True, log=out / "run.log")
    planned = plan_cohort(seed=seed)
    console.say(f"1/4 drawing {len(planned)} synthetic slides: 3 classes, 3 sites")
    table = _draw(planned, out, jobs, console)
    console.say("2/4 slides to bags (texture-v1: baseline features, not a foundation model)")
    options = preprocess.Options(slides=(out / "slides",), out=out, jobs=jobs, sheet="slides")
    code = preprocess.run(load_config(["demo"]), options, hushed)
    if code:
        return code
    console.say(f"3/4 training {', '.join(RUNS)}: 3 folds each")
    bags = out / "bags"
    for name, settings in RUNS.items():
        _train(name, settings, table, bags, out, seed, hushed)
    console.say("4/4 comparing")
    found = {name: _lesions_found(out / "runs" / name, out / "slides") for name in ("ce", "ncmi")}
    result = _report(out, found, console)
    _close(out, found, result, time.monotonic() - started, console)
    return 0


def _begin(out: Path, seed: int) -> None:
    """Mark the folder as a demo of this seed; one that was interrupted goes on.

    Raises:
        ConfigError: the folder holds something else.
    """
    marker = out / "demo.json"
    if marker.is_file():
        held = json.loads(marker.read_text(encoding="utf-8"))["seed"]
        if held != seed:
            raise ConfigError(f"{out} holds the demo of seed {held} — give another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no demo — give another --out")
    else:
        publish_json(marker, {"seed": seed})


def _draw(planned: Sequence[Planned], out: Path, jobs: int, console: Console) -> Path:
    folder, table = out / "slides", out / "cohort.csv"
    folder.mkdir(parents=True, exist_ok=True)
    # The outline is written after its slide, so it tells that both are whole.
    todo = [item for item in planned if not _outline(folder, item.slide_id).is_file()]
    with processes(jobs) as pool, console.progress("drawing", len(todo)) as track:
        for _ in pool.map(partial(write_slide_of, folder=folder), todo):
            track.advance()
    write_table(list(planned), [slide_path(item, folder) for item in planned], table)
    return table


def _train(
    name: str,
    settings: Sequence[str],
    table: Path,
    bags: Path,
    out: Path,
    seed: int,
    hushed: Console,
) -> None:
    words = ["demo", *settings, *_SMALL_MODEL, f"split.seed={seed}", f"fit.seeds=[{seed}]"]
    # Bags this small train faster on one core than it takes to start more processes.
    runs, first = out / "runs", next(iter(RUNS))
    options = train.Options(table, bags, runs / name, report=False, like=runs / first)
    train.run(load_config(words), options, hushed)


def _lesions_found(root: Path, slides: Path) -> Found:
    """Return how well attention finds lesions on test slides that have one."""
    from wsi.training import load

    inputs = RunDir(root).read_inputs()
    store = open_store(inputs["bags"])
    inside, random = [], []
    for cell in RunDir(root).cells():
        model, _ = load(cell / "model.safetensors")
        lesions = {s: read_geojson(_outline(slides, s)) for s in _tested(cell)}
        with_lesion = [slide_id for slide_id, shapes in lesions.items() if shapes]
        for attention in attention_of(model, store.read, with_lesion):
            centres = np.asarray(points(attention.xy0 + np.asarray(attention.size0) / 2))
            hits = np.zeros(len(centres), bool)
            for shape in lesions[attention.slide_id]:
                hits |= shape.geometry.contains(centres)
            inside.append(hits[top_tiles(attention, _TOP)].mean())
            random.append(hits.mean())
    return Found(float(np.mean(inside)), float(np.mean(random)), len(inside))


def _tested(cell: Path) -> list[str]:
    with (cell / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        return [row["slide_id"] for row in csv.DictReader(handle)]


def _outline(slides: Path, slide_id: str) -> Path:
    return slides / f"{slide_id}.geojson"


def _report(out: Path, found: dict[str, Found], console: Console) -> dict[str, Any]:
    runs = {name: out / "runs" / name for name in RUNS}
    loaded = [(name, load_predictions(root)) for name, root in runs.items()]
    spec = load_config(["demo"]).evaluate
    result = compare.compare(loaded, "macro_f1", spec)
    metrics = {name: RunDir(root).read_metrics() for name, root in runs.items()}
    rows = [[n, interval(m["macro_f1"]), interval(m["auc"])] for n, m in metrics.items()]
    console.table(
        ["run", "macro-F1", "AUC"],
        rows,
        f"{result['n']} slides, {result['n_patients']} patients, out-of-fold",
    )
    compare.show_differences(result, console)
    say_alarms(runs, console)
    publish_json(out / "comparison.json", result)
    lead = (
        "Synthetic slides, out-of-fold over three folds grouped by patient. "
        + " ".join(
            f"Under {name.upper()}, {f.share:.0%} of the {_TOP} highest-attention tiles lie inside "
            f"a lesion (tiles at random: {f.random:.0%})."
            for name, f in found.items()
        )
        + " Baseline texture features, one seed, nothing tuned: this shows the toolkit and says "
        "nothing about which loss is better."
    )
    hushed = Console(hushed=True, log=out / "run.log")
    for root in runs.values():
        refresh_card(RunDir(root), hushed)
    compare.write_comparison_report(
        out / "report.html", runs, result, hushed, lead, "wsi demo", NEXT
    )
    return result


def say_alarms(runs: dict[str, Path], console: Console) -> None:
    """Say, on one line, which alarms the trainings raised and where they are shown."""
    found: dict[str, list[str]] = {}
    for name, root in runs.items():
        histories = [read_history(cell / "metrics.jsonl") for cell in RunDir(root).cells()]
        kinds = dict.fromkeys(a.name for rows in histories for a in raised_over(rows))
        if kinds:
            found[name] = list(kinds)
    if found:
        told = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in found.items())
        console.say(f"alarms while training ({told}) — see the learning curves in the report")


def _close(
    out: Path,
    found: dict[str, Found],
    result: dict[str, Any],
    seconds: float,
    console: Console,
) -> None:
    for name, f in found.items():
        console.say(
            f"{name}: {f.share:.0%} of the {_TOP} highest-attention tiles lie inside lesions on "
            f"{f.slides} test slides (at random {f.random:.0%})"
        )
    console.result(
        {
            "report": str(out / "report.html"),
            "seconds": round(seconds, 1),
            "top_tiles_in_lesions": {k: vars(f) for k, f in found.items()},
            "comparison": result,
        }
    )
    console.say(f"done in {seconds:.0f} s. With your own slides:")
    for line in NEXT:
        console.say(f"  {line.replace('`', '')}")
    console.say(f"report: {out / 'report.html'}")
