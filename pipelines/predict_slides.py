"""The slides that `wsi predict` is asked about, and the bags they have or get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from pipelines import preprocess
from pipelines.console import Console
from pipelines.predict_models import RunEnsemble
from pipelines.predict_recipe import check_bags, check_recipe, config_of, recipe_words
from pipelines.quarantine import Quarantine
from pipelines.survey import TABLE_SUFFIXES, listed_slides
from wsi.bags import BagInfo, BagStore, open_store
from wsi.bags.sidecar import SUFFIX
from wsi.bags.verify import Finding
from wsi.cohorts import read_slide_table
from wsi.errors import BagError, ConfigError

_EMPTY, _QUARANTINED, _DAMAGED = "empty", "quarantined", "damaged"


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        slides: places of raw slides; none when `bags` is given.
        folds, seeds: models used; all when empty.
        out_of_fold: a slide of the run is predicted by models that never saw it or its patient.
        settings: on top of the run's recipe, see `pipelines.predict_recipe.OPEN`.
        cohort: table of the slides to predict, with their patients and sites.
    """

    run: Path
    out: Path
    bags: Path | None = None
    slides: tuple[Path, ...] = ()
    folds: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    out_of_fold: bool = False
    explain: bool = False
    settings: tuple[str, ...] = ()
    jobs: int = 1
    device: str = "cpu"
    allow_quarantined: str = "0"
    retry_quarantined: bool = False
    dry_run: bool = False
    cohort: Path | None = None


@dataclass(frozen=True)
class Asked:
    """One slide to predict.

    Attributes:
        patient_id, site: empty where unknown.
        info: of its bag; None where it has none.
        trouble: state and reason of a slide that cannot be predicted, else empty.
    """

    slide_id: str
    path: Path | None = None
    patient_id: str = ""
    site: str = ""
    info: BagInfo | None = None
    trouble: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Material:
    """All slides asked for and the store with their bags.

    Attributes:
        store: None where no slide has a bag.
        closed: folders that may not be read.
    """

    slides: tuple[Asked, ...]
    store: BagStore | None = None
    closed: int = 0


def check_places(options: Options) -> None:
    """Raise ConfigError unless either bags or slides are given."""
    if (options.bags is None) == (not options.slides):
        raise ConfigError("give either --bags DIR or --slides DIR, one of them")
    if options.bags is not None and options.explain:
        raise ConfigError("--explain draws on slides — give --slides in place of --bags")
    if options.bags is not None and options.settings:
        raise ConfigError(
            f"{options.settings[0]}: settings go with --slides; bags are made already"
        )


def with_bags(options: Options, models: RunEnsemble, console: Console) -> Material | int:
    """Return the slides with their bags, made where slides were given; an exit code when that ends.

    Raises:
        BagMismatchError: the bags are of another recipe than the run's, or would be.
        ConfigError: the run's recipe cannot be followed here.
    """
    if options.bags is not None:
        return _of_bags(options.bags, models, console)
    config = config_of(models.bags, recipe_words(options.settings))
    made = preprocess.Options(
        slides=options.slides,
        out=options.out,
        jobs=options.jobs,
        device=options.device,
        dry_run=options.dry_run,
        retry_quarantined=options.retry_quarantined,
        sheet="slides",
        accept=lambda recipe: check_recipe(models.bags, recipe),
    )
    code = preprocess.run(config, made, replace(console, json=False))
    if options.dry_run or code not in (0, 3):
        return code
    return _of_slides(options, models, console)


def _of_bags(bags: Path, models: RunEnsemble, console: Console) -> Material:
    store = open_store(bags)
    infos = store.infos()
    check_bags(models.bags, store, infos)
    slides = [Asked(info.slide_id, info=info) for info in infos]
    damaged = _damaged(store, None, len(infos), console)
    known = {info.slide_id for info in infos}
    slides += [Asked(slide_id) for slide_id in damaged if slide_id not in known]
    slides.sort(key=lambda slide: slide.slide_id)
    return Material(tuple(_marked(slide, damaged) for slide in slides), store)


def _of_slides(options: Options, models: RunEnsemble, console: Console) -> Material:
    sources = listed_slides(options.slides)
    patients = _patients(options.slides)
    failed = Quarantine(options.out).entries()
    store = _made_store(options.out, models)
    infos = {info.slide_id: info for info in store.infos()} if store else {}
    slides = []
    for file in sources.files:
        slide_id = file.slide_id
        asked = Asked(slide_id, file.path, patients.get(slide_id, ""), file.site)
        if slide_id in failed:
            entry = failed[slide_id]
            asked = replace(asked, trouble=(_QUARANTINED, f"{entry.reason}: {entry.message}"))
        elif slide_id in infos:
            asked = replace(asked, info=infos[slide_id])
        else:
            asked = replace(asked, trouble=("unfinished", "it has no bag yet — run this again"))
        slides.append(asked)
    done = [s.slide_id for s in slides if s.info is not None and s.info.status == "done"]
    damaged = _damaged(store, done, len(done), console)
    marked = tuple(_marked(slide, damaged) for slide in slides)
    return Material(marked, store, len(sources.closed))


def _made_store(out: Path, models: RunEnsemble) -> BagStore | None:
    """Return the folder of bags of the run's recipe below `out`, where one was made."""
    folder = out / "bags"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            store = open_store(path)
        except BagError:
            continue
        if any(info.recipe_key == models.bags.key for info in store.infos()):
            return store
    return None


def _patients(places: Sequence[Path]) -> dict[str, str]:
    tables = [p for p in places if p.suffix.lower() in TABLE_SUFFIXES and p.is_file()]
    rows = [row for table in tables for row in read_slide_table(table)]
    return {row.slide_id: row.patient_id for row in rows}


def _damaged(
    store: BagStore | None, ids: Sequence[str] | None, n: int, console: Console
) -> dict[str, str]:
    """Return what is wrong with bags, by slide id: of `ids`, or of all in the folder."""
    if store is None or not n:
        return {}
    with console.progress("checking bags", n) as track:
        found = list(store.verify_all(ids, looked=track.advance))
    return {_id_of(f): f.message for f in found if f.state in ("corrupt", "missing")}


def _id_of(finding: Finding) -> str:
    """Return the id of a slide; a sidecar that cannot be read is known by its file name alone."""
    return unquote(finding.name.removesuffix(SUFFIX))


def _marked(slide: Asked, damaged: Mapping[str, str]) -> Asked:
    if slide.slide_id in damaged:
        return replace(slide, trouble=(_DAMAGED, damaged[slide.slide_id]))
    if slide.info is not None and slide.info.status == "empty":
        return replace(slide, trouble=(_EMPTY, slide.info.reason or "no tile"))
    return slide
