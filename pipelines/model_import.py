"""`wsi model import`: another tool's weights as a run folder that predict and explain take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from pipelines.config import check_config
from pipelines.console import Console
from pipelines.run_bags import RunBags, bags_record
from pipelines.rundir import RunDir
from wsi.bags import BagInfo, BagStore, check_uniform, open_store
from wsi.errors import BagMismatchError, BagMissingError, ConfigError
from wsi.evaluation import Predictions, write_predictions
from wsi.files import publish_bytes, publish_json, sha256_file
from wsi.registry import suggest
from wsi.specs import DataSpec

if TYPE_CHECKING:
    from wsi.training.foreign import Imported, Tool

_SPLITS = b"slide_id,patient_id,fold,part\n"


@dataclass(frozen=True)
class Options:
    """What the command line decides; `bags` are such as the model was trained on."""

    file: Path
    tool: Tool
    classes: tuple[str, ...]
    bags: Path
    out: Path


def run(options: Options, console: Console) -> int:
    """Write the run folder."""
    from wsi.training.foreign import Tool, import_model

    if options.tool not in get_args(Tool):
        near = suggest(options.tool, get_args(Tool))
        raise ConfigError(f"--from {options.tool}{near} — known: {', '.join(get_args(Tool))}")
    classes = DataSpec(classes=options.classes).classes or ()
    store = open_store(options.bags)
    sample = _sample(store)
    imported = import_model(options.file, options.tool, classes)
    dim = imported.model.card.dim
    if dim != sample.dim:
        raise BagMismatchError(
            f"{options.file.name} takes {dim} features per tile, bags in {store.root} have "
            f"{sample.dim} — give bags of the encoder it was trained on"
        )
    _write(options, imported, store, sample)
    for name, why in imported.left_out.items():
        console.detail(f"{name} is left out: {why}")
    card = imported.model.card
    console.say(
        f"{options.file.name}: {card.aggregator}, {dim} features, "
        f"{card.aggregator_params['hidden']} wide, {len(imported.left_out)} tensors not needed"
    )
    console.warn(
        f"that it was trained on features like those in {store.root.name} is as you say: "
        "nothing in the file tells — compare a few of its predictions with the tool's own"
    )
    console.say(f"run: {options.out}")
    console.result(
        {
            "run": str(options.out),
            "aggregator": card.aggregator,
            "left_out": dict(imported.left_out),
            "recipe": store.root.name,
        }
    )
    return 0


def _sample(store: BagStore) -> BagInfo:
    """Return the sidecar of one bag of those that all share a recipe."""
    infos = store.infos()
    check_uniform(infos)
    done = [info for info in infos if info.status == "done"]
    if not done:
        raise BagMissingError(f"{store.root}: all slides are empty — give bags with tiles")
    return done[0]


def _write(options: Options, imported: Imported, store: BagStore, sample: BagInfo) -> None:
    from wsi.training import save
    from wsi.training.checkpoint import Origin

    card, run_dir = imported.model.card, RunDir(options.out)
    settings: dict[str, Any] = {
        "aggregator": {"name": card.aggregator, **card.aggregator_params},
        "objective": {"name": card.objective},
        "data": {"classes": list(card.classes)},
        "fit": {"standardise": False},
    }
    if run_dir.begin(check_config(settings), _inputs(options, store, sample)):
        raise ConfigError(f"{options.out} holds this model already — give another --out")
    made = sample.provenance
    used = RunBags(sample.recipe_key, made.recipe, made.encoder, {})
    publish_json(bags_record(run_dir.root), used.to_json())
    publish_bytes(run_dir.splits, _SPLITS)
    cell = run_dir.cell(0, 0)
    cell.mkdir(exist_ok=True)
    model = cell / "model.safetensors"
    save(model, imported.model, Origin(sample.recipe_key, 0, f"imported from {options.tool}", None))
    empty = pd.DataFrame(columns=["slide_id", "patient_id", *(f"p_{c}" for c in card.classes)])
    write_predictions(Predictions(card.classes, empty), run_dir.predictions)
    done = {"rule": imported.model.objective.rule, "files": {model.name: sha256_file(model)}}
    publish_json(cell / "done.json", done)


def _inputs(options: Options, store: BagStore, sample: BagInfo) -> dict[str, Any]:
    return {
        "recipe": store.root.name,
        "recipe_key": sample.recipe_key,
        "encoder": sample.provenance.encoder,
        "tiling": sample.provenance.tiling["settings"],
        "slides": 0,
        "bags": str(store.root),
        "imported": {
            "from": options.tool,
            "file": options.file.name,
            "sha256": sha256_file(options.file),
        },
    }
