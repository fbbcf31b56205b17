"""What a run folder says of itself, gathered for its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pipelines.config
from pipelines.console import Console, counted
from pipelines.labelled import labelled_predictions
from pipelines.run_parts import ids_of, parts_of
from pipelines.rundir import RunDir
from pipelines.slide_pictures import slide_pictures
from pipelines.tilecounts import dropped_words
from wsi.bags import TileFilter
from wsi.report import RunSummary
from wsi.specs import Config

_RULES = {
    "own": "own (the probabilities come from the objective's own rule)",
    "class_mean": "class_mean (from distances to the mean embedding of each class)",
    "probe": "probe (from a logistic regression on the embeddings)",
}


def summarise(
    run_dir: RunDir, console: Console, name: str = "", *, draw: bool = True
) -> RunSummary:
    """Return the run's figures, curves, facts and example slides.

    Pictures need the slide files; where these cannot be reached the report says so.

    Args:
        draw: pictures of slides, which take most of the time.
    """
    config = pipelines.config.read_config(run_dir.config)
    inputs = run_dir.read_inputs()
    predictions = labelled_predictions(run_dir)
    done = {cell.name: _json(cell / "done.json") for cell in run_dir.cells()}
    pictures, without = [], {}
    if draw:
        pictures, without = slide_pictures(run_dir, config, inputs, predictions, console)
    return RunSummary(
        name=name or run_dir.root.name,
        metrics=_json(run_dir.metrics),
        predictions=predictions,
        histories={cell.name: read_history(cell / "metrics.jsonl") for cell in run_dir.cells()},
        facts=_facts(config, inputs, _json(run_dir.environment), list(done.values())),
        parts=parts_of(run_dir, config, inputs, predictions),
        warnings=_json(run_dir.splits.with_suffix(".json"))["warnings"],
        examples=pictures,
        without_picture=without,
        chosen={name: facts["best_epoch"] for name, facts in done.items()},
        monitor=config.fit.monitor,
        tags=(config.aggregator.name, config.objective.name, inputs["encoder"]["name"]),
        ids=ids_of(run_dir, predictions),
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
    slides = counted(inputs["slides"], "slide")
    note = f" ({encoder['note']})" if encoder.get("note") else ""
    return {
        "cohort": f"{inputs['cohort']}, {slides} with bags{_together(inputs)}",
        "cohort table": f"sha256 {inputs['cohort_sha256'][:12]}",
        **({"labels": inputs["labels_from"]} if inputs.get("labels_from") else {}),
        "label": config.data.label,
        "encoder": f"{encoder['name']}{note}, {encoder['dim']} features, "
        f"fingerprint {encoder['fingerprint'][:12]}",
        "encoder licence": encoder.get("licence") or "unknown",
        "bags": f"recipe {inputs['recipe']}, fingerprint {inputs['bags_sha256'][:12]}",
        "tiles": f"{tiling['tile_px']} px at {tiling['mpp']:g} um/px, "
        f"tissue at least {tiling['min_tissue']:g}{_left_out(config, inputs)}, "
        f"recipe fingerprint {inputs['recipe_key'][:12]}",
        "aggregator": _component(config.aggregator),
        "objective": _component(config.objective),
        "split": f"{config.split.kind}, validation by {config.split.val.by}, "
        f"hash {inputs['splits_sha256'][:12]}",
        "fits": f"{len(done)}, seeds {', '.join(map(str, config.fit.seeds))}",
        "training": f"{counted(config.fit.epochs, 'epoch')}, AdamW {config.fit.lr:g}, "
        f"checkpoint by validation {config.fit.monitor}",
        **_decision(done),
        "versions": ", ".join(f"{k} {v}" for k, v in environment["libraries"].items() if v),
    }


def _decision(done: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return which rule decided in how many fits; nothing for runs that did not note it."""
    rules = Counter(facts["rule"] for facts in done if "rule" in facts)
    told = ", ".join(
        f"{_RULES.get(rule, rule)} in {counted(n, 'fit')}" for rule, n in rules.most_common()
    )
    return {"decision rule": told} if told else {}


def _together(inputs: Mapping[str, Any]) -> str:
    return f", one bag for each of {inputs['patients']} patients" if "patients" in inputs else ""


def _left_out(config: Config, inputs: Mapping[str, Any]) -> str:
    words = dropped_words(inputs.get("tiles", {}).get("left_out", {}), "left out")
    return f"; {TileFilter.of(config.data)}: {words[0]}" if words else ""


def _component(component: Any) -> str:
    params = ", ".join(f"{k}={v}" for k, v in component.params.items())
    return f"{component.name} ({params})" if params else component.name


def names_of(roots: Sequence[Path]) -> list[str]:
    """Return a distinct short name for each run."""
    names = [root.name or root.resolve().name for root in roots]
    if len(set(names)) == len(names):
        return names
    longer = [f"{root.parent.name}/{name}" for root, name in zip(roots, names, strict=True)]
    return longer if len(set(longer)) == len(longer) else [str(root) for root in roots]
