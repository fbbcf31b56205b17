"""What `wsi explain` is asked to do: which slides, by which models, from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.console import Console, counted
from pipelines.explain_drawing import SlideAt
from pipelines.explain_files import SCHEMA
from pipelines.explain_models import RunModels, Speakers
from pipelines.lesions import holds_lesions, is_table, lesion_files, lesions_named
from pipelines.rundir import RunDir
from pipelines.survey import listed_slides
from wsi.annotations import SUFFIXES
from wsi.bags import BagStore, open_store
from wsi.errors import BagMismatchError, ConfigError
from wsi.explain import MapName, Question
from wsi.files import sha256_file, sha256_json
from wsi.findings import few
from wsi.registry import suggest


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


def bags_of(options: Options) -> BagStore:
    """Return the bags: those named, else those the run recorded."""
    recorded = RunDir(options.run).read_inputs()["bags"]
    if options.bags is None and not Path(recorded).is_dir():
        raise ConfigError(f"the run's bags are no longer at {recorded} — say where with --bags")
    return open_store(options.bags or recorded)


def settings_of(options: Options, models: RunModels) -> dict[str, Any]:
    """Return what all slides of an output folder have in common."""
    return {
        "schema": SCHEMA,
        "models": sha256_json(sorted(models.hashes.values())),
        "target": options.question.target,
        "against": options.question.against,
        "maps": list(options.maps),
        "smoothing": options.smoothing,
    }


def planned_slides(
    options: Options,
    store: BagStore,
    models: RunModels,
    settings: Mapping[str, Any],
    console: Console,
) -> tuple[list[Planned], list[str]]:
    """Return the slides that have a bag, in order of id, and the ids of those left out.

    Raises:
        ConfigError: a slide asked for is not there or has no bag, or there is none at all.
    """
    files = {item.slide_id: item.path for item in listed_slides(options.slides).files}
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
    left_out = [] if options.only else sorted(set(files) - with_bags)
    if left_out:
        console.warn(
            f"{counted(len(left_out), 'slide')} without a bag left out: {few(left_out)} — run "
            "`wsi preprocess` for them"
        )
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
    return planned, left_out


def _annotations(options: Options, files: Mapping[str, Path], console: Console) -> dict[str, Path]:
    if options.annotations is None:
        beside = {s: path.with_suffix(".geojson") for s, path in files.items()}
        found = {s: path for s, path in beside.items() if path.is_file()}
        for table in filter(is_table, options.slides):
            named = lesions_named(table) or {}
            found |= {s: path for s, path in named.items() if s in files}
        return found
    matched = lesion_files(options.annotations, files)
    if not matched.files:
        console.warn(
            f"no file of {options.annotations} is of a slide to explain — they are named by slide, "
            f"<id>{SUFFIXES[0]}"
        )
    return matched.files


def say_plan(planned: Sequence[Planned], console: Console) -> None:
    """Say which slides are explained by whom."""
    outlined = sum(p.annotations is not None and holds_lesions(p.annotations) for p in planned)
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
