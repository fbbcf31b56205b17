"""`wsi stage`: CAMELYON-17's patient stages from predicted nodes."""

from __future__ import annotations

from pathlib import Path

from pipelines.console import Console
from pipelines.scoring import interval
from pipelines.sources import load_predictions
from wsi.evaluation import evaluate, write_predictions
from wsi.evaluation.staging import METRICS_OF_STAGES, stage_patients, submission
from wsi.files import publish_json
from wsi.findings import few
from wsi.specs import EvaluateSpec


def run(source: Path, out: Path, replicates: int, console: Console) -> int:
    """Write stages, their scores where labels are known, and the challenge's submission."""
    predictions = load_predictions(source)
    staged = stage_patients(predictions)
    if staged.not_evaluable:
        console.warn(
            f"{len(staged.not_evaluable)} patients are not staged: "
            + few(f"{patient} ({why})" for patient, why in staged.not_evaluable.items())
        )
    write_predictions(staged, out / "stages.csv")
    submission(predictions).write(out / "submission.csv")
    console.say(f"wrote {out / 'stages.csv'} and {out / 'submission.csv'}")
    if "" in set(staged.table["y_true"]):
        console.say("not scored: some nodes have no label — join them with `wsi evaluate --cohort`")
        console.result({"stages": str(out / "stages.csv"), "metrics": None})
        return 0
    metrics = evaluate(staged, EvaluateSpec(replicates=replicates), METRICS_OF_STAGES)
    publish_json(out / "metrics.json", metrics)
    rows = [[name, interval(metrics[name])] for name in METRICS_OF_STAGES]
    console.table(["metric", f"{metrics['n_patients']} patients"], rows, "stages by the pN rule")
    if metrics["labels_from"]:
        console.say(f"labels: {metrics['labels_from']}")
    for note in metrics["notes"]:
        console.say(f"note: {note}")
    console.result({"stages": str(out / "stages.csv"), "metrics": metrics})
    return 0
