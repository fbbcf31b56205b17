"""What a run folder says of itself, gathered for its report."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shapely.geometry import MultiPolygon, Polygon

import pipelines.config
from pipelines.console import Console
from pipelines.labelled import labelled_predictions
from pipelines.patient_bags import read_slide_counts
from pipelines.rundir import RunDir
from pipelines.tilecounts import dropped_words
from wsi.bags import TileFilter, open_store
from wsi.errors import ExplainError, WsiError
from wsi.evaluation import Predictions
from wsi.explain import attention_of, draw_attention
from wsi.geojson import read_geojson
from wsi.report import Example, RunSummary
from wsi.report.summary import PartRow
from wsi.slides import open_slide
from wsi.specs import Config

_THUMBNAIL_PX = 1000
_WRONG_SHOWN = 2


def summarise(run_dir: RunDir, console: Console, name: str = "") -> RunSummary:
    """Return the run's figures, curves, facts and example slides.

    Example slides need the slide files; where they cannot be reached the report goes without.
    """
    config = pipelines.config.read_config(run_dir.config)
    inputs = run_dir.read_inputs()
    predictions = labelled_predictions(run_dir)
    done = {cell.name: _json(cell / "done.json") for cell in run_dir.cells()}
    return RunSummary(
        name=name or run_dir.root.name,
        metrics=_json(run_dir.metrics),
        predictions=predictions,
        histories={cell.name: read_history(cell / "metrics.jsonl") for cell in run_dir.cells()},
        facts=_facts(config, inputs, _json(run_dir.environment), list(done.values())),
        parts=_parts(run_dir, predictions),
        warnings=_json(run_dir.splits.with_suffix(".json"))["warnings"],
        examples=_examples(run_dir, config, inputs, predictions, console),
        chosen={name: facts["best_epoch"] for name, facts in done.items()},
        monitor=config.fit.monitor,
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the epochs of a training from its metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _facts(
    config: Config,
    inputs: Mapping[str, Any],
    environment: Mapping[str, Any],
    done: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    encoder, tiling = inputs["encoder"], inputs["tiling"]
    note = f" ({encoder['note']})" if encoder.get("note") else ""
    return {
        "cohort": f"{inputs['cohort']}, {inputs['slides']} slides with bags{_together(inputs)}",
        "cohort table": f"sha256 {inputs['cohort_sha256'][:12]}",
        **({"labels": inputs["labels_from"]} if inputs.get("labels_from") else {}),
        "label": config.data.label,
        "encoder": f"{encoder['name']}{note}, {encoder['dim']} features, "
        f"fingerprint {encoder['fingerprint'][:12]}",
        "tiles": f"{tiling['tile_px']} px at {tiling['mpp']:g} um/px, "
        f"tissue at least {tiling['min_tissue']:g}{_left_out(config, inputs)}",
        "aggregator": _component(config.aggregator),
        "objective": _component(config.objective),
        "split": f"{config.split.kind}, validation by {config.split.val.by}, "
        f"hash {inputs['splits_sha256'][:12]}",
        "fits": f"{len(done)}, seeds {', '.join(map(str, config.fit.seeds))}",
        "training": f"{config.fit.epochs} epochs, AdamW {config.fit.lr:g}, checkpoint by "
        f"validation {config.fit.monitor}",
        **_decision(done),
        "versions": ", ".join(f"{k} {v}" for k, v in environment["libraries"].items() if v),
    }


def _decision(done: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return which rule decided in how many fits; nothing for runs that did not note it."""
    rules = Counter(facts["rule"] for facts in done if "rule" in facts)
    told = ", ".join(f"{rule} in {n} fits" for rule, n in rules.most_common())
    return {"decision rule": told} if told else {}


def _together(inputs: Mapping[str, Any]) -> str:
    return f", one bag for each of {inputs['patients']} patients" if "patients" in inputs else ""


def _left_out(config: Config, inputs: Mapping[str, Any]) -> str:
    words = dropped_words(inputs.get("tiles", {}).get("left_out", {}), "left out")
    return f"; {TileFilter.of(config.data)}: {words[0]}" if words else ""


def _component(component: Any) -> str:
    params = ", ".join(f"{k}={v}" for k, v in component.params.items())
    return f"{component.name} ({params})" if params else component.name


def _parts(run_dir: RunDir, predictions: Predictions) -> list[PartRow]:
    table = predictions.table
    labels = dict(zip(table["slide_id"], table["y_true"], strict=True))
    slides: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
    with run_dir.splits.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            slides[int(row["fold"]), row["part"]].append((row["slide_id"], row["patient_id"]))
    of_patient = read_slide_counts(run_dir.root)
    order = {"train": 0, "val": 1, "test": 2}
    rows = []
    for fold, part in sorted(slides, key=lambda key: (key[0], order[key[1]])):
        members = slides[fold, part]
        # Slides that no fold tests have no prediction, so their class is not counted here.
        counts = Counter[str]()
        for sample, patient in members:
            if sample in labels:
                counts[labels[sample]] += of_patient.get(patient, 1) if of_patient else 1
        shown = {name: counts[name] for name in predictions.classes}
        n_slides = sum(of_patient.get(p, 1) for _, p in members) if of_patient else len(members)
        rows.append(PartRow(fold, part, n_slides, len({p for _, p in members}), shown))
    return rows


def _examples(
    run_dir: RunDir,
    config: Config,
    inputs: Mapping[str, Any],
    predictions: Predictions,
    console: Console,
) -> list[Example]:
    if predictions.unit == "patient":
        console.detail("no attention overlays: bags are of patients, pictures of slides")
        return []
    paths = _slide_paths(Path(inputs["bags"]))
    chosen = [row for row in _telling(predictions) if row["slide_id"] in paths]
    examples = []
    for row in chosen:
        try:
            examples.append(_example(run_dir, config, inputs, row, paths[row["slide_id"]]))
        except ExplainError as error:
            console.detail(f"no attention overlays: {error}")
            break
        except (WsiError, OSError) as error:
            console.detail(f"no picture of {row['slide_id']}: {error}")
    return examples


def _telling(predictions: Predictions) -> list[dict[str, Any]]:
    """Return the surest right slide of each class and the surest wrong ones, of one seed."""
    columns = [f"p_{name}" for name in predictions.classes]
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} | {"p": max(row[c] for c in columns)}
        for row in predictions.table.to_dict(orient="records")
        if row["seed"] == predictions.seeds[0]
    ]
    rows.sort(key=lambda row: (-row["p"], row["slide_id"]))
    right = [row for row in rows if row["y_true"] == row["y_pred"]]
    surest = [next((r for r in right if r["y_true"] == c), None) for c in predictions.classes]
    wrong = [row for row in rows if row["y_true"] != row["y_pred"]][:_WRONG_SHOWN]
    return [row for row in surest if row is not None] + wrong


def _example(
    run_dir: RunDir, config: Config, inputs: Mapping[str, Any], row: Mapping[str, Any], path: Path
) -> Example:
    from wsi.training import load

    store = open_store(inputs["bags"])
    model, _ = load(run_dir.cell(int(row["fold"]), int(row["seed"])) / "model.safetensors")
    slide_id = row["slide_id"]
    attention = attention_of(model, store.read, [slide_id], tiles=TileFilter.of(config.data))[0]
    mpp = store.info(slide_id).provenance.slide["mpp"]
    with open_slide(path, slide_id, mpp=mpp[0]) as slide:
        thumbnail = slide.thumbnail(max(1.0, max(slide.info.bounds0[2:]) / _THUMBNAIL_PX))
        origin = slide.info.bounds0[0], slide.info.bounds0[1]
    outlines = _annotations(path, origin)
    picture = draw_attention(thumbnail, attention, outlines, mpp=(mpp[0], mpp[1]))
    caption = "attention" + (", annotated lesions dashed" if outlines else "")
    return Example(
        slide_id, row["y_true"], row["y_pred"], float(row["p"]), row["site"], picture, caption
    )


def _annotations(path: Path, origin0: tuple[int, int]) -> list[Polygon | MultiPolygon]:
    """Return the outlines in a GeoJSON file beside the slide, if there is one."""
    beside = path.with_suffix(".geojson")
    if not beside.is_file():
        return []
    shapes = (shape.geometry for shape in read_geojson(beside, origin0))
    return [shape for shape in shapes if isinstance(shape, Polygon | MultiPolygon)]


def _slide_paths(bags: Path) -> dict[str, Path]:
    """Return the slide files that `wsi preprocess` recorded beside these bags."""
    table = bags.parent.parent / "slides.csv"
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    found = {row["slide_id"]: Path(row["path"]) for row in rows if row.get("path")}
    return {slide_id: path for slide_id, path in found.items() if path.is_file()}


def names_of(roots: Sequence[Path]) -> list[str]:
    """Return a distinct short name for each run."""
    names = [root.name or root.resolve().name for root in roots]
    if len(set(names)) == len(names):
        return names
    longer = [f"{root.parent.name}/{name}" for root, name in zip(roots, names, strict=True)]
    return longer if len(set(longer)) == len(longer) else [str(root) for root in roots]
