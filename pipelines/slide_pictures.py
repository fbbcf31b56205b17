"""Pictures of the slides of a run that are worth a look, for its report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapely.geometry import MultiPolygon, Polygon

from pipelines.console import Console
from pipelines.rundir import RunDir
from wsi.bags import BagStore, TileFilter, open_store
from wsi.errors import ExplainError, WsiError
from wsi.evaluation import Predictions
from wsi.explain import attention_of, draw_attention
from wsi.geojson import read_geojson
from wsi.report import Example
from wsi.report.slide_picture import beside, plain
from wsi.report.telling import TellingSlide, telling
from wsi.slides import Thumbnail, open_slide
from wsi.specs import Config

if TYPE_CHECKING:
    from wsi.training.model import Model

_THUMBNAIL_PX = 1000
_EDGE_PX = 520
_FOOT_TIMES = 2  # two pictures share a column, so each is shown at half its size


def slide_pictures(
    run_dir: RunDir,
    config: Config,
    inputs: Mapping[str, Any],
    predictions: Predictions,
    console: Console,
) -> tuple[list[Example], dict[str, str]]:
    """Return pictures of the telling slides, and why others have none, by slide id."""
    slides = telling(predictions)
    if predictions.unit == "patient":
        return [], {s.slide_id: "bags are of patients, pictures of slides" for s in slides}
    recorded = _slide_paths(Path(inputs["bags"]))
    draw = _Drawing(run_dir, config, Path(inputs["bags"]), predictions.seeds[0])
    made, without = [], {}
    for slide in slides:
        path = recorded.get(slide.slide_id)
        try:
            if path is None:
                without[slide.slide_id] = "no slides.csv beside the bags says where the slide is"
            elif not path.is_file():
                without[slide.slide_id] = "the slide file is no longer where it was"
            else:
                made.append(draw.example(slide, path))
        except (WsiError, OSError) as error:
            without[slide.slide_id] = _reason(error, path)
            console.detail(f"no picture of {slide.slide_id}: {error}")
    return made, without


def _reason(error: Exception, path: Path | None) -> str:
    """Return what went wrong without the folders of this machine."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.replace(str(path), path.name) if path else text


class _Drawing:
    """Draws slides with the attention of the model that tested them."""

    def __init__(self, run_dir: RunDir, config: Config, bags: Path, seed: int) -> None:
        self._run_dir, self._bags, self._seed = run_dir, bags, seed
        self._tiles = TileFilter.of(config.data)
        self._aggregator = config.aggregator.name
        self._model = cache(self._load)
        self._store = cache(lambda: open_store(bags))

    def example(self, slide: TellingSlide, path: Path) -> Example:
        """Return the slide, and beside it the attention; alone where there is none to show."""
        store: BagStore = self._store()
        mpp = store.info(slide.slide_id).provenance.slide["mpp"]
        with open_slide(path, slide.slide_id, mpp=mpp[0]) as opened:
            bounds0 = opened.info.bounds0
            thumbnail = opened.thumbnail(max(1.0, max(bounds0[2:]) / _THUMBNAIL_PX))
        pair = (mpp[0], mpp[1])
        left = plain(thumbnail, pair, _EDGE_PX)
        try:
            right, caption = self._attention(slide, path, thumbnail, bounds0[:2], pair)
        except ExplainError:
            return Example(slide.slide_id, left, f"{self._aggregator} has no attention to show")
        return Example(slide.slide_id, beside(left, right), caption)

    def _attention(
        self,
        slide: TellingSlide,
        path: Path,
        thumbnail: Thumbnail,
        origin0: tuple[int, int],
        mpp: tuple[float, float],
    ) -> tuple[Any, str]:
        model, store = self._model(slide.fold), self._store()
        (found,) = attention_of(model, store.read, [slide.slide_id], tiles=self._tiles)
        outlines = _annotations(path, origin0)
        picture = draw_attention(
            thumbnail, found, outlines, mpp=mpp, edge_px=_EDGE_PX, foot_times=_FOOT_TIMES
        )
        of = f"slide, and attention of fold {slide.fold}, seed {self._seed}"
        return picture, of + (", annotated lesions dashed" if outlines else "")

    def _load(self, fold: int) -> Model:
        from wsi.training import load

        return load(self._run_dir.cell(fold, self._seed) / "model.safetensors")[0]


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
    return {row["slide_id"]: Path(row["path"]) for row in rows if row.get("path")}
