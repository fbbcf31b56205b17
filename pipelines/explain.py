"""`wsi explain`: for every slide, which tiles speak for a class, how much, and for what instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.console import Console, counted
from pipelines.explain_drawing import Drawing, Drawn, SlideAt, draw_slide
from pipelines.explain_files import SCHEMA, ExplainDir, write_shapes, write_tiles
from pipelines.explain_gallery import write_galleries
from pipelines.explain_models import RunModels, Speakers
from pipelines.survey import listed_slides
from pipelines.workers import check_device, readers
from wsi.annotations import SUFFIXES, match_files
from wsi.bags import BagStore, TileFilter, open_store
from wsi.errors import BagMismatchError, ConfigError, WsiError
from wsi.explain import (
    MAPS,
    Evidence,
    MapName,
    Question,
    TileMaps,
    class_contrasts,
    strongest,
    tile_auroc,
    tile_maps,
    tile_size,
)
from wsi.files import publish_json, sha256_file, sha256_json
from wsi.registry import suggest
from wsi.report.explanation import ExplainedSlide, write_explanation
from wsi.supervision import Lost

_PER_SLIDE = 3  # tiles of one slide in the gallery of a class


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        only: ids of slides; all when empty.
        maps: what is drawn, the first as OUT/<id>.png.
        bags: None for the bags of the run.
        smoothing: of pictures alone, standard deviation in tiles.
        annotations: folder of outlines; files beside the slides when not given.
    """

    run: Path
    slides: tuple[Path, ...]
    out: Path
    only: tuple[str, ...] = ()
    question: Question = field(default_factory=Question)
    maps: tuple[MapName, ...] = ("contrast",)
    bags: Path | None = None
    annotations: Path | None = None
    smoothing: float = 0.0
    jobs: int = 1
    device: str = "cpu"
    dry_run: bool = False


@dataclass(frozen=True)
class Planned:
    """One slide to explain, by which models, with the hash of all it depends on."""

    at: SlideAt
    speakers: Speakers
    annotations: Path | None
    key: str


@dataclass(frozen=True, eq=False)
class Computed:
    """A slide's evidence, before its picture is drawn."""

    planned: Planned
    drawing: Drawing
    evidence: Evidence


def run(options: Options, console: Console) -> int:
    """Explain slides; 3 when some could not be."""
    check_device(options.device)
    store = _store(options)
    models = RunModels(options.run, store.ids())
    options.question.check(models.classes)
    out = ExplainDir(options.out)
    settings = _settings(options, models)
    out.check(settings)
    planned = _planned(options, store, models, settings, console)
    _say_plan(planned, options, console)
    if options.dry_run:
        console.say("nothing was written")
        console.result({"slides": {p.at.slide_id: p.speakers.how for p in planned}})
        return 0
    out.begin(settings)
    facts, failed = _explained(planned, options, store, models, out, console)
    for slide_id, reason in failed.items():
        console.warn(f"{slide_id}: {reason}")
    if facts:
        slides = {p.at.slide_id: p.at for p in planned}
        write_galleries(facts, slides, models.classes, out, options.jobs, models.config, console)
    return _close(facts, failed, options, models, out, console)


def _store(options: Options) -> BagStore:
    from pipelines.rundir import RunDir

    recorded = RunDir(options.run).read_inputs()["bags"]
    if options.bags is None and not Path(recorded).is_dir():
        raise ConfigError(f"the run's bags are no longer at {recorded} — say where with --bags")
    return open_store(options.bags or recorded)


def _settings(options: Options, models: RunModels) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "models": sha256_json(sorted(models.hashes.values())),
        "target": options.question.target,
        "against": options.question.against,
        "maps": list(options.maps),
        "smoothing": options.smoothing,
    }


def _planned(
    options: Options,
    store: BagStore,
    models: RunModels,
    settings: Mapping[str, Any],
    console: Console,
) -> list[Planned]:
    """Return the slides that have a bag, in order of id.

    Raises:
        ConfigError: a slide asked for is not there or has no bag, or there is none at all.
    """
    files = {item.slide_id: item.path for item in listed_slides(options.slides).files}
    _refuse_own_files(options.out, files)
    with_bags = set(store.ids())
    unknown = [s for s in options.only if s not in files or s not in with_bags]
    if unknown:
        known = sorted(with_bags & set(files))
        what = "is not below --slides" if unknown[0] not in files else "has no bag"
        raise ConfigError(
            f"--slide {unknown[0]} {what}{suggest(unknown[0], known)} — see `wsi bags ls`"
        )
    ids = [s for s in sorted(files) if s in with_bags and (not options.only or s in options.only)]
    if not ids:
        raise ConfigError(
            f"none of the {counted(len(files), 'slide')} below --slides has a bag in {store.root} "
            "— run `wsi preprocess` for them, or name other bags with --bags"
        )
    if len(ids) < len(files) and not options.only:
        console.say(f"{counted(len(files) - len(ids), 'slide')} without a bag left out")
    outlines = _annotations(options, {s: files[s] for s in ids}, console)
    planned = []
    for slide_id in ids:
        info = store.info(slide_id)
        made = info.provenance
        if info.recipe_key != models.inputs["recipe_key"]:
            raise BagMismatchError(
                f"{slide_id}: its bag was made by another recipe than the run was trained on — "
                f"give bags of {models.inputs['recipe']}"
            )
        mpp = made.slide["mpp"]
        at = SlideAt(
            slide_id, files[slide_id], (float(mpp[0]), float(mpp[1])), made.slide["fingerprint"]
        )
        beside = outlines.get(slide_id)
        hashed = sha256_file(beside) if beside else None
        key = sha256_json({**settings, "bag": info.sha256, "annotations": hashed})
        planned.append(Planned(at, models.speakers(slide_id), beside, key))
    return planned


def _refuse_own_files(out: Path, files: Mapping[str, Path]) -> None:
    inside = [p for p in files.values() if p.resolve().parent == out.resolve()]
    if inside:
        raise ConfigError(
            f"--out {out} holds slides ({inside[0].name}), and what is written could replace "
            "outlines beside them — give a folder of its own"
        )


def _annotations(options: Options, files: Mapping[str, Path], console: Console) -> dict[str, Path]:
    if options.annotations is None:
        beside = {s: path.with_suffix(".geojson") for s, path in files.items()}
        return {s: path for s, path in beside.items() if path.is_file()}
    matched = match_files(options.annotations, files)
    if not matched.files:
        console.warn(
            f"no file of {options.annotations} is of a slide to explain — they are named by slide, "
            f"<id>{SUFFIXES[0]}"
        )
    return matched.files


def _say_plan(planned: Sequence[Planned], options: Options, console: Console) -> None:
    outlined = sum(p.annotations is not None for p in planned)
    own = sum(p.speakers.out_of_fold for p in planned)
    seen = sum(p.speakers.how.startswith("trained") for p in planned)
    strange = len(planned) - own - seen
    console.say(
        f"{counted(len(planned), 'slide')} to explain: {own} out-of-fold, {strange} not in the run"
        + (f", {seen} that every fold trained on" if seen else "")
        + (f"; {outlined} with annotated lesions" if outlined else "")
    )
    if strange:
        console.say("slides not in the run are explained by the mean of all its models")
    if seen:
        console.warn(f"{seen} slides were never tested: their maps show what was learned by heart")
    for item in planned:
        console.detail(f"{item.at.slide_id}: {item.speakers.how}")


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
                if len(failed) + 1 == len(todo):
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
    exact = "exact" if maps.is_exact(name) else "approximate (gradient × input)"
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
        "gap": evidence.gap,
        "sum": float(maps.values(options.maps[0]).sum()),
        "lesion_tiles": None if drawn.lesion is None else int(drawn.lesion.sum()),
        "auroc": _aurocs(maps, drawn.lesion),
        "auroc_touched": _aurocs(maps, drawn.touched),
        "auroc_of_label": _label_aurocs(found, drawn, models),
        "top": _top(maps, evidence, models.classes),
        "files": [path.relative_to(out.root).as_posix() for path in written],
    }
    publish_json(out.facts(slide_id), facts)
    return facts


def _aurocs(maps: TileMaps, lesion: NDArray[np.bool_] | None) -> dict[str, float] | None:
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


def _label_aurocs(found: Computed, drawn: Drawn, models: RunModels) -> dict[str, float] | None:
    """Return the same for the class the slide is labelled with, whatever was asked or predicted."""
    label = found.planned.speakers.label
    if not label:
        return None
    maps = found.drawing.maps
    question = Question(label, "others")
    own = tile_maps(maps.slide_id, found.evidence, maps.xy0, maps.size0, models.classes, question)
    return _aurocs(own, drawn.lesion)


def _top(maps: TileMaps, evidence: Evidence, classes: Sequence[str]) -> dict[str, Any]:
    """Return the tiles that speak most for each class against the others."""
    values = class_contrasts(evidence)
    top: dict[str, Any] = {"size0": list(maps.size0)}
    for c, name in enumerate(classes):
        rows = strongest(values[:, c], maps.xy0, maps.size0, _PER_SLIDE)
        top[name] = [[float(values[r, c]), *map(int, maps.xy0[r])] for r in rows]
    return top


def _close(
    facts: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
    options: Options,
    models: RunModels,
    out: ExplainDir,
    console: Console,
) -> int:
    summary = _summary(facts, failed, options, models)
    publish_json(out.summary, summary)
    cards = [_card(f, options, out) for f in facts]
    galleries = [(c, out.gallery(c)) for c in models.classes if out.gallery(c).is_file()]
    write_explanation(out.page, cards, galleries, summary)
    console.table(
        ["slide", "predicted", "p", "target", "tiles", "sum", "exact", "auroc"],
        [_row(f, options.maps[0]) for f in facts],
        summary["shown"],
    )
    console.result(summary)
    _say_summary(summary, console)
    console.say(f"maps: {out.page}")
    return 3 if failed else 0


def _row(f: Mapping[str, Any], shown: MapName) -> list[str]:
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


def _summary(
    facts: Sequence[dict[str, Any]],
    failed: Mapping[str, str],
    options: Options,
    models: RunModels,
) -> dict[str, Any]:
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


def _say_summary(summary: Mapping[str, Any], console: Console) -> None:
    if summary["exact"] is None:
        return
    if summary["exact"]:
        console.say(f"exact: tiles sum to the logits within {summary['max_gap']:.1e} nats")
    else:
        console.warn(
            f"objective '{summary['objective']}' decides by scores that are not linear in the bag "
            "embedding: evidence and contrast are approximate (gradient × input), leave-one-out "
            "and pmi exact — train with objective.predict=probe for exact maps"
        )
    told = {
        "auroc": "tiles at least half lesion, shown class",
        "auroc_touched": "tiles that touch a lesion, shown class",
        "auroc_of_label": "tiles at least half lesion, labelled class, out-of-fold",
    }
    for key, whose in told.items():
        found = summary[key]
        if found:
            words = ", ".join(f"{n} {v['mean']:.3f}" for n, v in found.items())
            n = max(v["slides"] for v in found.values())
            console.say(f"tile AUROC, {whose}, mean of {counted(n, 'slide')}: {words}")


def _card(f: Mapping[str, Any], options: Options, out: ExplainDir) -> ExplainedSlide:
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
