"""`wsi predict --explain`: a page for every predicted slide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.console import Console
from pipelines.explain_drawing import (
    RGB,
    Drawing,
    SlideAt,
    Wanted,
    draw_slide,
    encoded,
    read_wanted,
)
from pipelines.explain_models import average_bag
from pipelines.predict_files import Answer, PredictDir
from pipelines.predict_models import RunEnsemble
from pipelines.predict_slides import Asked
from pipelines.workers import readers
from wsi.bags import BagStore, TileFilter
from wsi.errors import WsiError
from wsi.explain import (
    Evidence,
    Question,
    TileMaps,
    draw_gallery,
    mean_evidence,
    model_evidence,
    strongest,
    tile_maps,
    tile_size,
)
from wsi.files import file_name_of, sha256_json
from wsi.report.prediction import ClassRow, Figure, PredictedSlide, is_current, write_prediction
from wsi.report.templates import source_hash
from wsi.specs import SlidesSpec
from wsi.supervision import Lost

_TOP = 12
_QUALITY = 90


@dataclass(frozen=True, eq=False)
class _Task:
    """What a child draws: the map and tiles of one slide; no map where models tell none."""

    answer: Answer
    asked: Asked
    key: str
    drawing: Drawing | None = None
    wanted: Wanted | None = None
    values: tuple[float, ...] = ()
    exact: bool = True
    problem: str = ""


def write_pages(
    answers: Sequence[Answer],
    slides: Sequence[Asked],
    store: BagStore,
    models: RunEnsemble,
    out: PredictDir,
    jobs: int,
    device: str,
    spec: SlidesSpec,
    console: Console,
) -> list[Path]:
    """Write OUT/pages/<id>.html of each predicted slide, and return them; those current stay."""
    by_id = {slide.slide_id: slide for slide in slides}
    done = [a for a in answers if a.p is not None and by_id[a.slide_id].path is not None]
    todo = [(a, by_id[a.slide_id], _key(a, by_id[a.slide_id])) for a in done]
    todo = [item for item in todo if not is_current(out.page(item[0].slide_id), item[2])]

    def tasks() -> Iterator[_Task]:
        for answer, asked, key in todo:
            yield _task(answer, asked, key, store, models, out, device)

    crew = readers(jobs, models.config.limits)
    with console.progress("drawing pages", len(todo)) as track:
        for task, drawn in crew.each(_draw, tasks(), spec):
            slide_id = task.answer.slide_id
            found = _Drawn(problem=drawn.message) if isinstance(drawn, Lost) else drawn
            write_prediction(out.page(slide_id), _page(task, found, models, out))
            track.advance(1, slide_id)
    return [out.page(answer.slide_id) for answer in done]


def _key(answer: Answer, asked: Asked) -> str:
    """Return a hash of all that a page depends on."""
    bag = asked.info.sha256 if asked.info else None
    models = sorted(member.sha256 for member in answer.by_member)
    look = source_hash("prediction.html.j2", "prediction.py")
    return sha256_json([answer.slide_id, answer.note, bag, models, look])


def _task(
    answer: Answer,
    asked: Asked,
    key: str,
    store: BagStore,
    models: RunEnsemble,
    out: PredictDir,
    device: str,
) -> _Task:
    try:
        evidence, maps = _maps(answer, store, models, device)
    except WsiError as error:
        return _Task(answer, asked, key, problem=f"no map of the evidence: {error}")
    if asked.info is None or asked.path is None:
        return _Task(answer, asked, key)
    made = asked.info.provenance.slide
    mpp = float(made["mpp"][0]), float(made["mpp"][1])
    at = SlideAt(answer.slide_id, asked.path, mpp, made["fingerprint"])
    exact = "exact" if maps.is_exact("contrast") else "approximate (integrated gradients)"
    lines = (f"{maps.title('contrast')}: {maps.contrast.sum():+.3g} nats in all · {exact}",)
    pictures = {"contrast": out.map(answer.slide_id)}
    drawing = Drawing(at, maps, pictures, {"contrast": lines}, 0.0, None)  # pyright: ignore[reportArgumentType]
    rows = strongest(maps.contrast, maps.xy0, maps.size0, _TOP)
    corners = [(int(x), int(y)) for x, y in maps.xy0[rows]]
    values = tuple(float(v) for v in maps.contrast[rows])
    wanted = Wanted(at, corners, maps.size0)
    return _Task(answer, asked, key, drawing, wanted, values, evidence.exact)


def _maps(
    answer: Answer, store: BagStore, models: RunEnsemble, device: str
) -> tuple[Evidence, TileMaps]:
    """Return what the models that predicted a slide say of its tiles, on average."""
    from wsi.data import BagDataset

    slide_id = answer.slide_id
    bag = store.read(slide_id)
    dataset = BagDataset(lambda _: bag, [slide_id], tiles=TileFilter.of(models.config.data))
    _, xy0 = dataset.tiles(0)
    batch = dataset.batch([0])
    parts = [
        model_evidence(models.model(m), batch, device, average_bag(m.folder))
        for m in answer.by_member
    ]
    evidence = mean_evidence(parts)
    predicted = models.classes[int(np.argmax(answer.p if answer.p is not None else 0))]
    question = Question(predicted, "others")
    size = tile_size(slide_id, bag)
    return evidence, tile_maps(slide_id, evidence, np.asarray(xy0), size, models.classes, question)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What a child gives back: pixels of the top tiles, and what went wrong."""

    tiles: Sequence[RGB] = ()
    problem: str = ""


def _draw(task: _Task, spec: SlidesSpec) -> _Drawn:
    """Write the map of one slide and return its top tiles, in a child that may die of it."""
    if task.drawing is None or task.wanted is None:
        return _Drawn(problem=task.problem)
    drawn = draw_slide(task.drawing, spec)
    tiles = read_wanted(task.wanted, spec)
    if isinstance(tiles, str):
        return _Drawn(problem=drawn.problem or tiles)
    return _Drawn(tiles, drawn.problem)


def _page(task: _Task, drawn: _Drawn, models: RunEnsemble, out: PredictDir) -> PredictedSlide:
    answer = task.answer
    predicted = models.classes[int(np.argmax(answer.p if answer.p is not None else 0))]
    figures = [f for f in (_overview(task, out), _map(task, predicted), _top(task, drawn)) if f]
    return PredictedSlide(
        slide_id=answer.slide_id,
        key=task.key,
        predicted=predicted,
        n_models=len(answer.by_member),
        classes=_rows(answer, models.classes),
        notes=[note for note in answer.note.split("; ") if note],
        figures=figures,
        missing=[drawn.problem] if drawn.problem else [],
        facts=_facts(task, models),
    )


def _rows(answer: Answer, classes: Sequence[str]) -> list[ClassRow]:
    p = np.stack(list(answer.by_member.values()))
    rows = []
    for c, name in enumerate(classes):
        sd = float(p[:, c].std(ddof=1)) if len(p) > 1 else None
        rows.append(ClassRow(name, float(p[:, c].mean()), sd, float(p[:, c].min()), p[:, c].max()))
    return rows


def _overview(task: _Task, out: PredictDir) -> Figure | None:
    """Return the thumbnail with tissue and tiles that preprocessing has drawn."""
    slide_id = task.answer.slide_id
    path = out.root / "thumbnails" / f"{file_name_of(slide_id)}.jpg"
    if not path.is_file():
        return None
    n = task.asked.info.n if task.asked.info else 0
    caption = f"The outline is the tissue found; the tiles drawn are the {n:,} of its bag."
    return Figure("Slide and tissue", caption, f"Slide {slide_id} with tissue", path.read_bytes())


def _map(task: _Task, predicted: str) -> Figure | None:
    if task.drawing is None:
        return None
    path = task.drawing.pictures["contrast"]
    if not path.is_file():
        return None
    kind = "" if task.exact else ", approximate (integrated gradients)"
    caption = (
        f"Tiles in orange speak for {predicted} against the mean of the other classes, those in "
        f"blue against it, in nats; mean of the models{kind}."
    )
    alt = f"Evidence for {predicted} on slide {task.answer.slide_id}"
    return Figure("Where the evidence is", caption, alt, path.read_bytes())


def _top(task: _Task, drawn: _Drawn) -> Figure | None:
    if not drawn.tiles or task.wanted is None or task.drawing is None:
        return None
    target = task.drawing.maps.target
    places = [f"x {x:,}  y {y:,}" for x, y in task.wanted.xy0]
    values = [f"{value:+.3g} nats" for value in task.values]
    tiles = list(zip(drawn.tiles, places, values))
    note = f"those that speak most for {target}, the most first; x, y in level-0 px"
    picture = draw_gallery(f"Top tiles for {target}", note, tiles)
    data = encoded(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, _QUALITY)
    alt = f"The {len(tiles)} tiles that speak most for {target}"
    caption = "Pixels as they are on the slide; tiles that overlap are shown once."
    return Figure("Top tiles", caption, alt, data)


def _facts(task: _Task, models: RunEnsemble) -> Mapping[str, str]:
    tiling, encoder = models.bags.recipe["tiling"], models.bags.encoder
    used = task.answer.by_member
    return {
        "run": models.run_dir.root.name,
        "models": ", ".join(f"fold {m.fold} seed {m.seed} ({m.sha256[:12]})" for m in used),
        "aggregator and objective": f"{models.config.aggregator.name} + "
        f"{models.config.objective.name}",
        "encoder": f"{encoder.get('name')} ({str(encoder['fingerprint'])[:12]})",
        "tiles": f"{tiling.get('tile_px')} px at {tiling.get('mpp')} um per pixel",
        "trained on this slide": "yes" if task.answer.in_training else "no",
    }
