"""Commands from slides to bags: scan, preprocess, tissue, encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from pipelines.commands.base import COMMON, DATA, Common, Jobs, Settings, Settle, app


@app.command(group=DATA)
def scan(
    *paths: str,
    out: Path | None = None,
    jobs: Jobs = 1,
    settle: Settle = 0.0,
    common: Common = COMMON,
) -> int:
    """List slides: vendor, size, levels, resolution and where it comes from, or what is wrong.

    Resolutions are counted by site: the site column of a table, else the first folder below the
    one given. The table kept with --out can be edited and given to `wsi preprocess --slides`.
    Exit code 3 when a slide is unreadable or has no believable resolution.

    Example: wsi scan DIR --out OUT slides.no_mpp=assume slides.assume_mpp=0.25

    Parameters
    ----------
    paths
        Folders (searched below), slide files, tables with a path column; slides.*=value settings.
    out
        CSV (or folder, for a slides.csv) to keep; slides in it that did not change stay closed.
    jobs
        Processes that open slides side by side.
    settle
        Report files that changed in the last seconds as being written: 60 while slides arrive.
    """
    from pipelines.scan import Options, places_and_settings, run, slides_csv_at

    places, spec = places_and_settings(paths)
    table = slides_csv_at(out) if out is not None else None
    return run(Options(places, table, jobs, settle), spec, common.console())


@app.command(group=DATA)
def preprocess(
    *settings: Settings,
    slides: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path,
    jobs: Jobs = 1,
    device: str = "cpu",
    until: Literal["tissue", "tiles", "bags"] = "bags",
    max_bad_tiles: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    allow_quarantined: str = "0",
    retry_quarantined: Annotated[bool, Parameter(negative=())] = False,
    redo: Annotated[bool, Parameter(negative=())] = False,
    settle: Settle = 0.0,
    lesions: Path | None = None,
    stage: Path | None = None,
    stage_gb: Annotated[float, Parameter(validator=Number(gt=0))] = 100.0,
    wait: Annotated[bool, Parameter(negative=())] = False,
    recheck_slides: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Turn slides into bags of tile embeddings; run it again to go on where it stopped.

    A slide that cannot be used is quarantined with a reason and never stops the run; the exit
    code is then 3. Example: wsi preprocess --slides DIR --out OUT tiling.mpp=0.5 encoder=resnet50

    Columns of the CSV such as tissue.min_area_mm2 set that for single slides, or for a whole
    site in a row whose slide_id is *; masks that a person corrected come by `wsi tissue import`.

    Parameters
    ----------
    slides
        Folders, slide files, or a CSV with a path column (and mpp); settings may follow.
    out
        Output folder: bags, tiles, tissue, thumbnails, slides.csv, quarantine.csv.
    jobs
        Processes that read slides side by side; encoding on a CPU takes the cores that are left.
    device
        Where the encoder runs: cpu, cuda, cuda:1, mps.
    until
        Stop after tissue or tiles, to look at OUT/report.html first.
    max_bad_tiles
        Leave out and name up to this many tiles per slide that cannot be decoded.
    allow_quarantined
        Exit 0 with up to this many quarantined slides, a number or a share: 5 or 2%.
    retry_quarantined
        Try slides again that failed before and have not changed.
    redo
        Make bags again that other settings made, or that lack bad tiles or scores.
    settle
        Leave files that changed in the last seconds to the next run: 60 while slides arrive.
    lesions
        Folder of lesion outlines (.xml, .geojson): count what kept tiles cover, name those missed.
    stage
        Folder on a local disk: copy slides there before they are read, the next ones ahead.
    stage_gb
        How much room such copies may take; they are removed when read, and at the end.
    wait
        Stay until slides are done that other processes work on, and take over what they leave.
    recheck_slides
        Open all slides, also those whose size and date are as slides.csv knows them.
    dry_run
        Say what would be done: slides, tiles, GB, what is unresolved.
    """
    from pipelines.config import idle_in_preprocessing, load_config, paths_and_settings, together
    from pipelines.logs import process_log
    from pipelines.preprocess import Options, run
    from wsi.errors import ConfigError

    places, more = paths_and_settings(slides)
    if not places:
        raise ConfigError(f"--slides {slides[0]}: only settings — give folders or slide files")
    words = together(settings, more)
    options = Options(
        slides=places,
        out=out,
        jobs=jobs,
        device=device,
        until=until,
        dry_run=dry_run,
        redo=redo,
        retry_quarantined=retry_quarantined,
        allow_quarantined=allow_quarantined,
        settle=settle,
        max_bad_tiles=max_bad_tiles,
        lesions=lesions,
        stage=stage,
        stage_gb=stage_gb,
        wait=wait,
        recheck_slides=recheck_slides,
    )
    config, console = load_config(words), common.console(None if dry_run else process_log(out))
    if idle := idle_in_preprocessing(words):
        console.warn(idle)
    return run(config, options, console)


tissue = app.command(App(name="tissue", help="Correct the tissue that was found.", group=DATA))


@tissue.command(name="import")
def tissue_import(
    source: Path,
    *,
    out: Path,
    roi: Literal["include", "exclude"] | None = None,
    origin: Literal["bounds", "slide"] = "bounds",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Take shapes drawn in QuPath or ASAP as the tissue of slides, or as regions of interest.

    Files are named by slide: <id>.geojson, <file name>.geojson, .json, .zip or ASAP's .xml.
    Shapes of a class named Ignore or Exclude, or ending in *, and ASAP's groups _2, normal and
    Exclusion, are holes. Then run the same `wsi preprocess` again: only these slides are redone,
    and unchanged tiles keep their features. No run changes what was imported, not even with
    --redo: import again to replace it, or remove its file below OUT/edits. Exit code 3 when a
    file is refused or of no slide.

    Example: wsi tissue import OUT/tissue --out OUT, after editing files of OUT/tissue in place

    Parameters
    ----------
    source
        A file, or a folder searched below; files as a run wrote them are passed over.
    out
        Output folder of `wsi preprocess`.
    roi
        Restrict the tissue to the shapes, or leave them out of it, in place of replacing it.
    origin
        Where GeoJSON counts from: the scanned bounds, as QuPath does, or the slide's corner.
    dry_run
        Say what would be imported.
    """
    from pipelines.tissue import Options, run

    return run(Options(source, out, roi, origin, dry_run), common.console())


encoders = app.command(App(name="encoders", help="See to encoders' weights.", group=DATA))


@encoders.command(name="check")
def encoders_check(*names: str, common: Common = COMMON) -> int:
    """Say whether encoders' weights are here or can be fetched now, with licence and sha256.

    Takes four seconds per encoder at most where the hub does not answer. Exit code 1 when the
    weights of one are neither here nor to be had.

    Parameters
    ----------
    names
        Encoders as in the setting encoder; see `wsi list encoders`.
    """
    from pipelines.encoders import check

    return check(_given(names), common.console())


@encoders.command(name="pull")
def encoders_pull(*names: str, common: Common = COMMON) -> int:
    """Fetch encoders' weights into the cache ahead of time, for machines without a network.

    Exit code 1 when one cannot be fetched; the others are.

    Parameters
    ----------
    names
        Encoders as in the setting encoder; see `wsi list encoders`.
    """
    from pipelines.encoders import fetch

    return fetch(_given(names), common.console())


def _given(names: tuple[str, ...]) -> tuple[str, ...]:
    from wsi.errors import ConfigError

    if not names:
        raise ConfigError("no encoder named — see `wsi list encoders`")
    return names
