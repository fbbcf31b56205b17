"""The model card of a run: Markdown that model hubs read, from the facts of its report."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from markupsafe import Markup
from ruamel.yaml import YAML

from wsi.evaluation import METRICS
from wsi.files import publish_bytes
from wsi.findings import counted
from wsi.report import tables, validated_tables
from wsi.report.cells import (
    Cell,
    Footnotes,
    Json,
    Table,
    interval,
    metrics_of,
    percent,
    worst_sites,
)
from wsi.report.floor_table import score_remarks, site_sentence
from wsi.report.markdown import table_text
from wsi.report.summary import RunSummary
from wsi.report.templates import markdown_template
from wsi.training.alarms import raised_over

_TAGS = ("computational-pathology", "whole-slide-image", "multiple-instance-learning")
_HUB_TYPES = {
    "macro_f1": "f1",
    "auc": "roc_auc",
    "micro_f1": "accuracy",
    "average_precision": "average_precision",
    "brier": "brier_score",
}
"""What model hubs call our metrics; others keep their names."""

_FEW_CLASSES = 4
"""Of more, the operating points would be most of the card."""

_SHORTEST_NAME = 3
_HIDDEN = "…"


def write_model_card(path: Path, run: RunSummary) -> None:
    """Write the card of a run to `path`, atomically; the same input gives the same bytes.

    It names no slide and no patient: ids in warnings and notes are left out.

    Raises:
        ResourceError: the disk is full.
    """
    publish_bytes(path, model_card(run).encode())


def model_card(run: RunSummary) -> str:
    """Return the card as text; see `write_model_card`."""
    metrics = run.metrics

    def said(text: str) -> str:
        return without_ids(text, run.ids)

    def shown(found: Sequence[Table | None]) -> list[Markup]:
        return [table_text(table, said) for table in found if table]

    by = (tables.by_group(metrics, "site"), tables.by_group(metrics, "cohort"))
    (facts,), (headline,) = shown([tables.facts([run])]), shown([tables.headline(metrics)])
    text = markdown_template("model_card.md.j2").render(
        front_matter=Markup(_front_matter(run)),
        title=run.name,
        about=_about(run),
        facts=facts,
        data=_data(run),
        data_tables=shown(_data_tables(run)),
        tested=_tested(metrics),
        headline=headline,
        worst=_worst(metrics),
        tables=shown([*by, tables.by_class(metrics), _floors(metrics), tables.by_seed(metrics)]),
        site=said(site_sentence(metrics)),
        validated=shown(_validated(metrics)),
        left_to_report=len(metrics["classes"]) > _FEW_CLASSES and metrics.get("operating_points"),
        limitations=map(said, _limitations(run)),
        usage=bool(run.tags),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def without_ids(text: str, ids: AbstractSet[str]) -> str:
    """Return a sentence in which no id stands.

    An id of digits, or a very short one, is also a number or a word, and is left out only where a
    slide or patient is named or listed.
    """
    for name in sorted(ids, key=len, reverse=True):
        if name in text and not _is_common(name):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _HIDDEN, text)
    common = {name for name in ids if _is_common(name)}
    if common:
        text = _LISTED.sub(lambda found: _hidden(found, common), text)
    return re.sub(rf"{_HIDDEN}(, {_HIDDEN})+", _HIDDEN, text)


_NAME = r"[\w.\-/]+"
_LISTED = re.compile(
    rf"((?:patients?|slides?|cases?|nodes?|bags?|samples?) |: )({_NAME}(?:(?:, | and ){_NAME})*)"
)


def _hidden(found: re.Match[str], ids: AbstractSet[str]) -> str:
    words = re.split(r"(, | and )", found[2])
    return found[1] + "".join(_HIDDEN if word in ids else word for word in words)


def _is_common(name: str) -> bool:
    return name.isdigit() or len(name) < _SHORTEST_NAME


def _front_matter(run: RunSummary) -> str:
    """Return the YAML by which a hub lists the model; a licence is for its owner to give."""
    task = {"type": "image-classification", "name": "Whole-slide image classification"}
    data = {"type": "whole-slide-images", "name": run.facts.get("cohort", "unnamed cohort")}
    results = [
        {
            "type": _HUB_TYPES.get(name, name),
            "name": METRICS[name].title,
            "value": run.metrics[name]["value"],
        }
        for name in metrics_of(run.metrics)
        if run.metrics[name]["value"] is not None
    ]
    content = {
        "library_name": "wsi",
        "pipeline_tag": "image-classification",
        "tags": [*_TAGS, *run.tags],
        "metrics": [result["type"] for result in results],
        "model-index": [
            {"name": run.name, "results": [{"task": task, "dataset": data, "metrics": results}]}
        ],
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[attr-defined]
    yaml.width = 4096  # a folded line is harder to read than a long one
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def _about(run: RunSummary) -> str:
    classes = ", ".join(run.metrics["classes"])
    models = len(run.histories)
    many = f"{counted(models, 'model')}, one for each fold and seed" if models else "A model"
    return f"{many}: attention-based multiple instance learning over tiles. Classes: {classes}."


def _data(run: RunSummary) -> str:
    told = [f"Cohort: {run.facts.get('cohort', 'unknown')}."]
    labels = run.metrics.get("labels_from")
    told += [f"Labels: {labels}."] if labels else []
    return " ".join(told)


def _data_tables(run: RunSummary) -> list[Table]:
    if not run.parts:
        return []
    by_site = tables.sites_of_parts(run.parts)
    return [tables.parts(run.parts, run.metrics["classes"]), *([by_site] if by_site else [])]


def _tested(metrics: Json) -> str:
    unit = metrics.get("scored", "slide")
    coverage = metrics["coverage"]
    missing = coverage["total"] - coverage["evaluable"]
    left_out = f" {counted(missing, unit)} could not be evaluated." if missing else ""
    return (
        f"{counted(metrics['n'], unit)} of {counted(metrics['n_patients'], 'patient')} in the test "
        f"parts; decided by: {metrics['decision']}.{left_out} Brackets are "
        f"{percent(metrics['level'])} intervals, bootstrap over patients, "
        f"{counted(metrics['replicates'], 'replicate')}."
    )


def _worst(metrics: Json) -> str:
    worst = metrics.get("worst_site") or {}
    return "; ".join(
        f"{METRICS[name].title} {interval(metrics['by']['site'][found['site']][name])} "
        f"at {' and '.join(worst_sites(found))}"
        for name, found in worst.items()
        if name in ("macro_f1", "auc")
    )


def _floors(metrics: Json) -> Table | None:
    """Return what simple rules reach on the same slides; None where nobody asked."""
    floors = metrics.get("floors")
    if not floors:
        return None
    shown = ("macro_f1", "auc")
    notes = Footnotes()
    rows = []
    for name, scores in floors.items():
        first = notes.numbers(scores.get("note", ""))
        cells = [
            Cell(interval(scores[m]), notes=notes.numbers(score_remarks(name, m, scores[m])))
            for m in shown
        ]
        rows.append((Cell(name, notes=first), *cells))
    columns = ("Floor", *(METRICS[m].title for m in shown))
    caption = "Floors: what simple rules reach on the same slides"
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def _validated(metrics: Json) -> list[Table | None]:
    """Return what the temperatures do, and the operating points of few classes."""
    few = len(metrics["classes"]) <= _FEW_CLASSES
    points = validated_tables.operating_points(metrics) if few else None
    return [validated_tables.calibrated(metrics), points]


def _limitations(run: RunSummary) -> Sequence[str]:
    metrics = run.metrics
    told = [*run.warnings, *_alarms(run), *metrics["notes"]]
    reasons: Mapping[str, str] = metrics["coverage"]["not_evaluable"]
    told += [f"not evaluated: {reason}" for reason in dict.fromkeys(reasons.values())]
    told += [f"floors: {metrics['floors_note']}"] if metrics.get("floors_note") else []
    told.append("intervals are of these models on other patients of the same sites, not of others")
    return list(dict.fromkeys(told))


def _alarms(run: RunSummary) -> list[str]:
    """Return each kind of alarm with the number of trainings that raised it."""
    names: dict[str, Any] = {}
    for epochs in run.histories.values():
        for raised in raised_over(epochs):
            names[raised.name] = names.get(raised.name, 0) + 1
    of = counted(len(run.histories), "training")
    return [f"alarm in {n} of {of}: {name}" for name, n in names.items()]
