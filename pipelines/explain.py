"""`wsi explain`: for every slide, which tiles speak for a class, how much, and for what instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console import Console, counted
from pipelines.explain_drawing import Drawing, Drawn, draw_slide
from pipelines.explain_files import SCHEMA, ExplainDir, write_shapes, write_tiles
from pipelines.explain_gallery import write_galleries
from pipelines.explain_models import RunModels
from pipelines.explain_plan import (
    Options,
    Planned,
    bags_of,
    planned_slides,
    say_plan,
    settings_of,
)
from pipelines.explain_summary import aurocs, card_of, say_summary, summary_of, table_row
from pipelines.patient_bags import refuse_patients
from pipelines.workers import check_device, readers
from wsi.bags import BagStore, TileFilter
from wsi.errors import WsiError
from wsi.explain import (
    Evidence,
    MapName,
    Question,
    TileMaps,
    class_margins,
    strongest,
    tile_maps,
    tile_size,
)
from wsi.files import check_case_twins, publish_json
from wsi.report.explanation import write_explanation
from wsi.supervision import Lost

_PER_SLIDE = 3  # tiles of one slide in the gallery of a class


@dataclass(frozen=True, eq=False)
class Computed:
    """A slide's evidence, before its picture is drawn."""

    planned: Planned
    drawing: Drawing
    evidence: Evidence


def run(options: Options, console: Console) -> int:
    """Explain slides; 3 when some could not be, or have no bag."""
    check_device(options.device)
    store = bags_of(options)
    models = RunModels(options.run, store.ids())
    refuse_patients(models.config, options.run, "maps of evidence")
    options.question.check(models.classes)
    out = ExplainDir(options.out)
    settings = settings_of(options, models)
    out.check(settings)
    planned, left_out = planned_slides(options, store, models, settings, console)
    say_plan(planned, console)
    if options.dry_run:
        console.say("nothing was written")
        console.result({"slides": {p.at.slide_id: p.speakers.how for p in planned}})
        return 0
    out.begin(settings)
    check_case_twins(out.root, [p.at.slide_id for p in planned])
    facts, failed = _explained(planned, options, store, models, out, console)
    for slide_id, reason in failed.items():
        console.warn(f"{slide_id}: {reason}")
    if facts:
        slides = {p.at.slide_id: p.at for p in planned}
        write_galleries(facts, slides, models.classes, out, options.jobs, models.config, console)
    return _close(facts, failed, left_out, options, models, out, console)


def _explained(
    planned: Sequence[Planned],
    options: Options,
    store: BagStore,
    models: RunModels,
    out: ExplainDir,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the facts of every slide done, in order, and why others are not."""
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    todo = []
    for item in planned:
        held = out.kept(item.at.slide_id, item.key)
        if held is None:
            todo.append(item)
        else:
            done[item.at.slide_id] = held
    if done:
        console.say(f"{counted(len(done), 'slide')} done already")
    crew = readers(options.jobs, models.config.limits)
    waiting: dict[str, Computed] = {}

    def drawings() -> Iterator[Drawing]:
        for item in todo:
            try:
                found = _computed(item, options, store, models, out)
            except WsiError as error:
                if not done and len(failed) + 1 == len(todo):
                    raise  # all of them, so it is the model and not a slide
                failed[item.at.slide_id] = str(error)
                continue
            waiting[item.at.slide_id] = found
            yield found.drawing

    with console.progress("explaining", len(todo)) as track:
        for drawing, drawn in crew.each(draw_slide, drawings(), models.config.slides):
            slide_id = drawing.at.slide_id
            found = waiting.pop(slide_id)
            if isinstance(drawn, Lost):
                failed[slide_id] = drawn.message
            elif drawn.problem:
                failed[slide_id] = drawn.problem
            else:
                done[slide_id] = _finished(found, drawn, options, models, out)
            track.advance(1, slide_id)
    return [done[p.at.slide_id] for p in planned if p.at.slide_id in done], failed


def _computed(
    item: Planned, options: Options, store: BagStore, models: RunModels, out: ExplainDir
) -> Computed:
    from wsi.data import BagDataset

    slide_id = item.at.slide_id
    bag = store.read(slide_id)
    dataset = BagDataset(lambda _: bag, [slide_id], tiles=TileFilter.of(models.config.data))
    _, xy0 = dataset.tiles(0)
    evidence = models.evidence(item.speakers.cells, dataset.batch([0]), options.device)
    maps = tile_maps(
        slide_id,
        evidence,
        np.asarray(xy0),
        tile_size(slide_id, bag),
        models.classes,
        options.question,
    )
    lines: dict[MapName, tuple[str, ...]]
    lines = {name: _lines(maps, name, evidence, item, models) for name in options.maps}
    pictures: dict[MapName, Path]
    pictures = {name: out.picture(slide_id, name, options.maps[0]) for name in options.maps}
    drawing = Drawing(item.at, maps, pictures, lines, options.smoothing, item.annotations)
    return Computed(item, drawing, evidence)


def _lines(
    maps: TileMaps, name: MapName, evidence: Evidence, item: Planned, models: RunModels
) -> tuple[str, str]:
    p = evidence.probabilities
    said = f"predicted {models.classes[int(p.argmax())]} (p = {p.max():.2f})"
    if item.speakers.label:
        said += f", labelled {item.speakers.label}"
    values = maps.values(name)
    if name in ("contrast", "evidence"):
        amount = f"{values.sum():+.3g} nats over {counted(len(values), 'tile')}"
    else:
        amount = f"{values.min():+.3g} to {values.max():+.3g} nats in {len(values):,} tiles"
    exact = "exact" if maps.is_exact(name) else "approximate (integrated gradients)"
    return f"{said} · {item.speakers.how}", f"{maps.title(name)}: {amount} · {exact}"


def _finished(
    found: Computed, drawn: Drawn, options: Options, models: RunModels, out: ExplainDir
) -> dict[str, Any]:
    """Write the tables of a drawn slide, then its facts, and return these."""
    item, maps, evidence = found.planned, found.drawing.maps, found.evidence
    slide_id, p = item.at.slide_id, evidence.probabilities
    write_tiles(out.table(slide_id), maps)
    shapes = write_shapes(out.geojson(slide_id), maps, options.maps[0], drawn.origin0)
    written = [out.table(slide_id), shapes, *found.drawing.pictures.values()]
    facts = {
        "schema": SCHEMA,
        "key": item.key,
        "slide_id": slide_id,
        "target": maps.target,
        "rival": maps.rival,
        "predicted": models.classes[int(p.argmax())],
        "label": item.speakers.label or None,
        "probabilities": dict(zip(models.classes, p.tolist(), strict=True)),
        "models": item.speakers.how,
        "out_of_fold": item.speakers.out_of_fold,
        "tiles": len(maps.xy0),
        "exact": evidence.exact,
        "pmi": evidence.pmi is not None,
        "gap": evidence.gap,
        "sum": float(maps.values(options.maps[0]).sum()),
        "lesion_tiles": None if drawn.lesion is None else int(drawn.lesion.sum()),
        "auroc": aurocs(maps, drawn.lesion),
        "auroc_touched": aurocs(maps, drawn.touched),
        "auroc_of_label": _of_label(found, drawn, models),
        "size0": list(maps.size0),
        "top": _top(maps, evidence, models.classes),
        "files": [path.relative_to(out.root).as_posix() for path in written],
    }
    publish_json(out.facts(slide_id), facts)
    return facts


def _of_label(found: Computed, drawn: Drawn, models: RunModels) -> dict[str, float] | None:
    """Return AUROCs for the class the slide is labelled with, whatever was asked or predicted."""
    label = found.planned.speakers.label
    if not label:
        return None
    maps = found.drawing.maps
    question = Question(label, "others")
    own = tile_maps(maps.slide_id, found.evidence, maps.xy0, maps.size0, models.classes, question)
    return aurocs(own, drawn.lesion)


def _top(maps: TileMaps, evidence: Evidence, classes: Sequence[str]) -> dict[str, Any]:
    """Return the tiles that speak most for each class, more than for any other."""
    values = class_margins(evidence)
    top: dict[str, Any] = {}
    for c, name in enumerate(classes):
        rows = strongest(values[:, c], maps.xy0, maps.size0, _PER_SLIDE)
        top[name] = [[float(values[r, c]), *map(int, maps.xy0[r])] for r in rows]
    return top


def _close(
    facts: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
    left_out: Sequence[str],
    options: Options,
    models: RunModels,
    out: ExplainDir,
    console: Console,
) -> int:
    summary = summary_of(facts, failed, left_out, options, models)
    publish_json(out.summary, summary)
    cards = [card_of(f, options, out) for f in facts]
    galleries = [(c, out.gallery(c)) for c in models.classes if out.gallery(c).is_file()]
    write_explanation(out.page, cards, galleries, summary)
    console.table(
        ["slide", "predicted", "p", "target", "tiles", "sum", "exact", "auroc"],
        [table_row(f, options.maps[0]) for f in facts],
        summary["shown"],
    )
    console.result(summary)
    say_summary(summary, console)
    console.say(f"maps: {out.page}")
    return 3 if failed or left_out else 0
