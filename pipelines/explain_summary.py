"""What `wsi explain` found, in numbers: is it exact, does it point at annotated lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.console import Console, counted
from pipelines.explain_files import SCHEMA, ExplainDir
from pipelines.explain_models import RunModels
from pipelines.explain_plan import Options
from wsi.errors import WsiError
from wsi.explain import MAPS, MapName, TileMaps, tile_auroc
from wsi.report.explanation import ExplainedSlide


def aurocs(maps: TileMaps, lesion: NDArray[np.bool_] | None) -> dict[str, float] | None:
    """Return how well each map tells lesion tiles from others; None without some of both."""
    if lesion is None or tile_auroc(maps.attention, lesion) is None:
        return None
    found = {"attention": tile_auroc(maps.attention, lesion)}
    for name in MAPS:
        try:
            found[name] = tile_auroc(maps.values(name), lesion)
        except WsiError:
            continue  # this model has no such map
    return {name: value for name, value in found.items() if value is not None}


def table_row(f: Mapping[str, Any], shown: MapName) -> list[str]:
    """Return a slide's cells of the table on stdout."""
    p = f["probabilities"][f["predicted"]]
    auroc = (f["auroc"] or {}).get(shown)
    return [
        f["slide_id"],
        f["predicted"],
        f"{p:.3f}",
        f["target"],
        str(f["tiles"]),
        f"{f['sum']:+.3f}",
        "exact" if f["exact"] else "approximate",
        "" if auroc is None else f"{auroc:.3f}",
    ]


def summary_of(
    facts: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
    left_out: Sequence[str],
    options: Options,
    models: RunModels,
) -> dict[str, Any]:
    """Return summary.json."""
    return {
        "schema": SCHEMA,
        "run": str(options.run),
        "classes": list(models.classes),
        "objective": models.config.objective.name,
        "aggregator": models.config.aggregator.name,
        "target": options.question.target,
        "against": options.question.against,
        "maps": list(options.maps),
        "shown": options.maps[0],
        "smoothing": options.smoothing,
        "slides": len(facts),
        "failed": dict(failed),
        "left_out": list(left_out),
        "without_pmi": sum(f.get("pmi") is False for f in facts),
        "exact": all(f["exact"] for f in facts) if facts else None,
        "max_gap": max((f["gap"] for f in facts), default=None),
        "auroc": _mean_aurocs([f["auroc"] for f in facts if f["auroc"]]),
        "auroc_touched": _mean_aurocs([f["auroc_touched"] for f in facts if f["auroc_touched"]]),
        "auroc_of_label": _mean_aurocs(
            [f["auroc_of_label"] for f in facts if f["auroc_of_label"] and f["out_of_fold"]]
        ),
    }


def _mean_aurocs(found: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    if not found:
        return None
    result: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in found for key in row):
        values = np.asarray([row[name] for row in found if name in row])
        result[name] = {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "least": float(values.min()),
            "slides": len(values),
        }
    return result


def say_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Say whether maps are exact, and how well they point at annotated lesions."""
    if summary["exact"] is None:
        return
    if summary["exact"]:
        console.say(f"exact: tiles sum to the logits within {summary['max_gap']:.1e} nats")
    else:
        console.warn(
            f"objective '{summary['objective']}' decides by scores that are not linear in the bag "
            "embedding: evidence and contrast are approximate (integrated gradients), "
            f"leave-one-out{'' if summary['without_pmi'] else ' and pmi'} exact — train with "
            "objective.predict=probe for exact maps"
        )
    if summary["without_pmi"]:
        console.say(
            f"no pmi of {counted(summary['without_pmi'], 'slide')}: the probabilities of the rule "
            "that decides are at no known prior, so that column is empty"
        )
    told = {
        "auroc": "tiles at least half lesion, shown class",
        "auroc_touched": "tiles that touch a lesion, shown class",
        "auroc_of_label": "tiles at least half lesion, labelled class against the mean of the "
        "others whatever --against says, out-of-fold",
    }
    for key, whose in told.items():
        found = summary[key]
        if found:
            words = ", ".join(f"{n} {v['mean']:.3f}" for n, v in found.items())
            n = max(v["slides"] for v in found.values())
            console.say(f"tile AUROC, {whose}, mean of {counted(n, 'slide')}: {words}")


def card_of(f: Mapping[str, Any], options: Options, out: ExplainDir) -> ExplainedSlide:
    """Return what the page says of a slide."""
    shown = options.maps[0]
    slide_id = f["slide_id"]
    return ExplainedSlide(
        slide_id=slide_id,
        picture=out.picture(slide_id, shown, shown).relative_to(out.root).as_posix(),
        predicted=f["predicted"],
        probability=f["probabilities"][f["predicted"]],
        label=f["label"],
        models=f["models"],
        target=f["target"],
        rival=f["rival"],
        exact=f["exact"],
        gap=f["gap"],
        auroc=(f["auroc"] or {}).get(shown),
        tiles=f["tiles"],
        files=tuple(f["files"]),
    )
