"""The `wsi` command: typed functions whose docstrings are the help.

Nothing heavy is imported here; each command imports what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

import wsi
from pipelines.stopping import Stopped, forget, terminated

if TYPE_CHECKING:
    from pipelines.console import Console

HELP = """Whole-slide images to attention-MIL classifiers, with intervals a reviewer can trust.

slides -> tissue -> tiles -> embeddings -> bags -> splits -> training
       -> predictions -> report

Start with `wsi demo`, then `wsi scan DIR` on your own slides. Settings are
given as `key=value`, on top of a preset or a YAML file: see `wsi config show`.
"""

# Plain text: the markdown that help is otherwise read as takes longer to load than all else.
app = App(
    name="wsi",
    help=HELP,
    help_format="plaintext",
    version=wsi.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # it would end without a word; see run_command
)
app["--help"].group = app["--version"].group = "Options"
_DATA = Group("Slides to bags", sort_key=1)
_LEARN = Group("Bags to results", sort_key=2)
_LOOK = Group("Looking around", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    json: Annotated[bool, Parameter(negative=())] = False
    """One JSON document on stdout in place of tables."""

    quiet: Annotated[bool, Parameter(negative=(), name=("--quiet", "-q"))] = False
    """Say only what went wrong."""

    verbose: Annotated[bool, Parameter(negative=(), name=("--verbose", "-v"))] = False
    """Say more."""

    debug: Annotated[bool, Parameter(negative=())] = False
    """Show the traceback of an error."""

    def console(self, log: Path | None = None) -> Console:
        """Return what the command talks through."""
        from pipelines.console import Console
        from wsi.errors import ConfigError

        if log is not None and log.parent.exists() and not log.parent.is_dir():
            raise ConfigError(f"{log.parent} is a file — give a folder as --out")
        console = Console(json=self.json, quiet=self.quiet, verbose=self.verbose, log=log)
        _talking.append(console)
        return console


_talking: list[Console] = []  # through which an error reaches the log of the command at work
COMMON = Common()
Jobs = Annotated[int, Parameter(validator=Number(gte=1))]
Settle = Annotated[float, Parameter(validator=Number(gte=0))]
Replicates = Annotated[int, Parameter(validator=Number(gte=100))]
PositiveMpp = Annotated[float, Parameter(validator=Number(gt=0))]
TileMap = Literal["contrast", "evidence", "pmi", "leave-one-out"]
ForeignLayout = Literal["clam", "trident", "stamp", "atlaspatch"]
SlidePlaces = Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())]
Settings = Annotated[str, Parameter(help="a preset or YAML file, then key=value settings")]


@app.command(group=_LOOK)
def demo(*, out: Path = Path("wsi-demo"), seed: int = 0, common: Common = COMMON) -> int:
    """Run the whole of wsi on synthetic slides: no data, no network, under three minutes.

    Draws slides over three sites and three classes, makes bags, trains CE and NCMI, compares
    them, and writes a report to look at.

    Parameters
    ----------
    out
        Folder for everything the demo makes.
    seed
        Seed of slides, splits and training.
    """
    from pipelines.demo import run

    return run(out, seed, common.console())


@app.command(group=_LOOK)
def doctor(*, out: Path | None = None, common: Common = COMMON) -> int:
    """Check machine, libraries, device, weights cache and output folder; say how to fix what fails.

    Parameters
    ----------
    out
        Folder where results shall go; checked for space and for atomic renames.
    """
    from pipelines.doctor import run

    return run(out, common.console())


@app.command(group=_DATA)
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


@app.command(group=_DATA)
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


@app.command(group=_LOOK)
def why(slide: str, *, out: Path, common: Common = COMMON) -> int:
    """Tell the whole story of one slide: what it is, its states and reasons, attempts and times.

    Exit code 3 when it is quarantined or not done, 2 when no slide has that id.

    Parameters
    ----------
    slide
        Its id, as in OUT/slides.csv; the bare file name is enough where it is unique.
    out
        Output folder of `wsi preprocess`.
    """
    from pipelines.why import run

    return run(slide, out, common.console())


tissue = app.command(App(name="tissue", help="Correct the tissue that was found.", group=_DATA))


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


encoders = app.command(App(name="encoders", help="See to encoders' weights.", group=_DATA))


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


bags = app.command(App(name="bags", help="Look at, check and convert bags.", group=_DATA))


@bags.command(name="ls")
def bags_ls(folder: Path, *, common: Common = COMMON) -> int:
    """List the bags of a folder: tiles, width, encoder, tiling.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    """
    from pipelines.bags import list_bags

    return list_bags(folder, common.console())


@bags.command(name="verify")
def bags_verify(
    folder: Path,
    *,
    quick: Annotated[bool, Parameter(negative=())] = False,
    repair: Annotated[bool, Parameter(negative=())] = False,
    slides: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Check every byte of every bag; exit code 5 and names when one is damaged or gone.

    States: corrupt, missing (a sidecar without its bag), stale (the slide was replaced), orphan
    (a bag without sidecar), temp (an unfinished file). What is not named is ok.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    quick
        Look at sidecars and sizes only: thousands of bags a second.
    repair
        Move what is no good to FOLDER/corrupt: preprocess makes it again. Not during a run.
    slides
        Folder or table of slides: names bags of replaced slides and slides without one.
    dry_run
        With --repair: say what would be moved.
    """
    from pipelines.verify import Options, verify_bags

    return verify_bags(Options(folder, quick, repair, slides, dry_run), common.console())


@bags.command(name="pack")
def bags_pack(
    folder: Path,
    *,
    out: Path | None = None,
    ids: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Copy all bags into a few flat files that training maps into memory.

    `wsi train` uses them when they lie in FOLDER/packed and agree with the bags; when a bag was
    changed, added or removed, it says so and reads the bags. Run it again then.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    out
        Folder for the packed cohort; by default `packed` inside the recipe folder.
    ids
        Table with a slide_id column: pack only these.
    dry_run
        Say how many bags, tiles and bytes.
    """
    from pipelines.pack import Options, pack_bags

    return pack_bags(Options(folder, out, ids, dry_run), common.console())


@bags.command(name="convert")
def bags_convert(
    folder: Path,
    *,
    to: Literal["h5", "zarr", "clam", "trident"],
    out: Path,
    common: Common = COMMON,
) -> int:
    """Write the bags of a folder in another file format, or as another tool's archive.

    Nothing is lost between h5 and zarr. CLAM gets h5_files/, pt_files/ and patches/, TRIDENT its
    job folder; a table slide_ids.csv says which slide each file is of. What is done is kept.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    to
        File format or layout to write.
    out
        Folder for the converted bags.
    """
    if to in ("clam", "trident"):
        from pipelines.foreign import export_bags

        return export_bags(folder, to, out, common.console())
    from pipelines.bags import convert_bags

    return convert_bags(folder, to, out, common.console())


@bags.command(name="import")
def bags_import(
    source: Path,
    *,
    from_: ForeignLayout,
    out: Path,
    in_place: Annotated[bool, Parameter(negative=())] = False,
    encoder: str | None = None,
    mpp: PositiveMpp | None = None,
    tile_px: Annotated[int, Parameter(validator=Number(gte=1))] | None = None,
    tile_mpp: PositiveMpp | None = None,
    slides: SlidePlaces | None = None,
    allow_nonfinite: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Take the features of another tool as bags: copied, or left where they are.

    Files are read with care: those with links, claims beyond their size or anything to execute are
    refused by name, and the others go on; the exit code is then 3. Encoders are as declared, so
    that such bags never mix with own ones before `wsi bags audit --recompute` verifies them.

    Example: wsi bags import DIR --from stamp --out BAGS --in-place --slides SLIDES

    Parameters
    ----------
    source
        The archive, as its tool wrote it.
    from_
        Whose layout it has.
    out
        Folder for the bags of this archive.
    in_place
        Copy nothing: write sidecars that point at the archive.
    encoder
        Name of the encoder, which CLAM does not store, or which of several to take.
    mpp
        um per level-0 pixel, for slides that are not given by --slides.
    tile_px
        Edge of CLAM's tiles in pixels, where there is no patches/ folder.
    tile_mpp
        um per pixel of CLAM's tiles, where they are not of level 0 and patches/ is not there.
    slides
        Folders, slide files or a CSV: resolution and fingerprint of each slide enter its bag.
    allow_nonfinite
        Leave out and count rows with NaN or infinite features, in place of refusing the slide.
    dry_run
        Say what would be imported.
    """
    from pipelines.foreign import ImportOptions, import_bags
    from wsi.bags.foreign import Given

    given = Given(encoder, mpp, tile_px, tile_mpp)
    options = ImportOptions(
        from_, source, out, given, tuple(slides or ()), in_place, allow_nonfinite, dry_run
    )
    return import_bags(options, common.console())


@bags.command(name="audit")
def bags_audit(
    folder: Path,
    *settings: Settings,
    from_: ForeignLayout | None = None,
    slides: SlidePlaces | None = None,
    encoder: str | None = None,
    mpp: PositiveMpp | None = None,
    recompute: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Tell what an archive really holds: fields of view, bad rows, mixtures; 5 on errors.

    With --recompute, tiles of an imported archive are embedded again: where they agree (cosine of
    0.999), its bags become verified, so that own bags of the same recipe may join; where not, the
    likely cause is named.

    Example: wsi bags audit BAGS --recompute 10 --slides SLIDES encoder=resnet50

    Parameters
    ----------
    folder
        Bags, imported or own, or an archive of another tool.
    from_
        Whose layout an archive has, where its folders do not tell.
    slides
        Folders, slide files or a CSV: they give the true field of view of each slide.
    encoder
        Which of several encoders of an archive to look at.
    mpp
        um per level-0 pixel, for slides that are not given by --slides.
    recompute
        Embed 32 tiles of up to so many slides again.
    device
        Where the encoder runs: cpu, cuda, cuda:1, mps.
    dry_run
        With --recompute: compare, and change no bag.
    """
    from pipelines.bags_audit import AuditOptions, audit_bags
    from wsi.bags.foreign import Given

    given = Given(encoder, mpp)
    options = AuditOptions(
        folder, from_, given, tuple(slides or ()), recompute, device, settings, dry_run
    )
    return audit_bags(options, common.console())


@bags.command(name="relink")
def bags_relink(
    folder: Path,
    *,
    slides: SlidePlaces,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Give bags the new ids of slides that were moved or renamed; nothing is computed.

    Slides are known by their content. What could mean several is refused by name; exit code 3.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    slides
        Folders, slide files or a CSV, as they are now.
    dry_run
        Say what would be renamed.
    """
    from pipelines.relink import relink_bags

    return relink_bags(folder, tuple(slides), dry_run, common.console())


cohort = app.command(App(name="cohort", help="Check cohort tables.", group=_LEARN))


@cohort.command(name="check")
def cohort_check(table: Path, *settings: Settings, common: Common = COMMON) -> int:
    """Find what is wrong with a table of slides, patients and labels; exit code 5 on errors.

    Parameters
    ----------
    table
        CSV or Excel: slide_id, patient_id, label, and site, split, path, mpp where known.
    """
    from pipelines.cohort import check

    return check(table, settings, common.console())


splits = app.command(App(name="splits", help="Make and audit splits by patient.", group=_LEARN))


@splits.command(name="make")
def splits_make(table: Path, *settings: Settings, out: Path, common: Common = COMMON) -> int:
    """Divide the patients of a cohort into training, validation and test parts.

    Example: wsi splits make cohort.csv --out splits.csv split.kind=leave-one-site-out

    Parameters
    ----------
    table
        The cohort table.
    out
        CSV of slide_id, patient_id, fold, part; a JSON with seed and hash goes beside it.
    """
    from pipelines.cohort import make

    return make(table, settings, out, common.console())


@splits.command(name="audit")
def splits_audit(file: Path, *settings: Settings, cohort: Path, common: Common = COMMON) -> int:
    """Find leaks and gaps in a split file; exit code 5 when a patient is on two sides.

    Parameters
    ----------
    file
        A split table written by `wsi splits make`.
    cohort
        The cohort table it divides.
    """
    from pipelines.cohort import audit

    return audit(file, settings, cohort, common.console())


@app.command(group=_LEARN)
def train(
    *settings: Settings,
    cohort: Path,
    bags: Path,
    out: Path,
    splits: Path | None = None,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Train one model per fold and seed, predict the test parts, evaluate and report.

    Example: wsi train --cohort cohort.csv --bags OUT/bags --out RUN objective=ncmi
    data.classes=[negative,itc,micro,macro] split.kind=leave-one-site-out fit.seeds=5

    Parameters
    ----------
    cohort
        Table of slides, patients, labels, sites.
    bags
        Folder of bags of one recipe.
    out
        Run folder; made new, or continued where it stopped.
    splits
        Use these splits in place of making them from split.*.
    jobs
        Processes that train folds and seeds side by side, one thread each.
    device
        Where to train: cpu, cuda, cuda:1.
    dry_run
        Say what would be trained: folds, seeds, slides and classes per part.
    """
    from pipelines.config import load_config
    from pipelines.train import Options, run

    options = Options(cohort, bags, out, splits, jobs, device, dry_run)
    return run(load_config(settings), options, common.console(None if dry_run else out / "run.log"))


@app.command(group=_LEARN)
def study(
    *settings: Settings,
    cohort: Path,
    bags: Path,
    out: Path,
    splits: Path | None = None,
    jobs: Jobs = 1,
    device: str = "cpu",
    until: Literal["rates", "final"] = "final",
    allow_few_seeds: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Compare objectives fairly: same splits and seeds, rates tuned alike, paired intervals.

    Every arm of study.arms tries every rate of study.rates on validation, then is fitted with all
    seeds at its best rate. Rerun to go on; further processes with the same --out share the fits.

    Example: wsi study --cohort cohort.csv --bags OUT/bags --out STUDY --jobs 2 fit.seeds=8
    study.arms=[ce,balanced-ce,ncmi] data.classes=[negative,itc,micro,macro]

    Parameters
    ----------
    cohort
        Table of slides, patients, labels, sites.
    bags
        Folder of bags of one recipe.
    out
        Study folder; made new, or continued where it stopped.
    splits
        Use the test parts of these splits in place of making them from split.*.
    jobs
        Processes that fit side by side, one thread each.
    device
        Where to fit: cpu, cuda, cuda:1.
    until
        Stop after the rates, for a cheap look at validation.
    allow_few_seeds
        Take fit.seeds as they are, also when they are fewer than study.least_seeds.
    dry_run
        Say how many fits and hours it takes, by one fit that is thrown away.
    """
    from pipelines.config import load_config
    from pipelines.study.run import Options, run

    options = Options(cohort, bags, out, splits, jobs, device, until, allow_few_seeds, dry_run)
    console = common.console(None if dry_run else out / "study.log")
    return run(load_config(settings), options, console)


@app.command(group=_LEARN)
def evaluate(
    *runs: Path,
    by: Annotated[
        list[Literal["site", "cohort"]] | None, Parameter(consume_multiple=True, negative=())
    ] = None,
    cohort: Path | None = None,
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Print macro-F1, AUC and more with patient-clustered intervals, overall and by site.

    Parameters
    ----------
    runs
        Run folders or predictions.csv files.
    by
        What to divide the results by; sites where known.
    cohort
        Join corrected labels from this table first.
    out
        Write metrics.json here; for a run folder it is written there.
    replicates
        Bootstrap replicates.
    """
    from pipelines.evaluate import run

    return run(runs, tuple(by or ()), cohort, out, replicates, common.console())


@app.command(group=_LEARN)
def compare(
    *runs: Path,
    metric: str = "macro_f1",
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Compare runs on the same slides: paired differences with patient-clustered intervals.

    Parameters
    ----------
    runs
        Two or more run folders or predictions.csv files; the first is the reference.
    metric
        What to compare: macro_f1, auc, balanced_accuracy, ...
    out
        Write the comparison, accuracy against NCMI as SVG, and a report of all runs here.
    replicates
        Bootstrap replicates.
    """
    from pipelines.compare import run

    return run(runs, metric, out, replicates, common.console())


@app.command(group=_LEARN)
def explain(
    run: Path,
    *,
    slides: SlidePlaces,
    out: Path,
    slide: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    target: str | None = None,
    against: str = "others",
    map: Annotated[list[TileMap] | None, Parameter(consume_multiple=True, negative=())] = None,
    bags: Path | None = None,
    annotations: Path | None = None,
    smooth: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Show where on slides the evidence for a class is: maps in nats, top tiles, QuPath files.

    A slide of the run is explained by the models that never trained on it, any other one with a
    bag by the mean of all. Tiles sum to the logit exactly for mean and attention pooling with a
    linear head; what is approximate says so. A rerun continues. Exit code 3 when slides fail.

    Example: wsi explain RUN --slides DIR --out OUT --against runner-up

    Parameters
    ----------
    run
        Run folder of `wsi train`.
    slides
        Folders, slide files or a CSV; slides without a bag are left out.
    out
        Folder for <id>.png, .csv and .geojson, top_tiles, summary.json and index.html.
    slide
        Only these slides, by id.
    target
        The class to explain; the predicted one when not given.
    against
        What it is held against: others (their mean), least, runner-up, or a class.
    map
        What to draw; the first one as <id>.png, others in folders of their own.
    bags
        Folder of bags of the run's recipe, when not those it was trained on.
    annotations
        Lesion outlines by slide, drawn and scored; <id>.geojson beside slides when not given.
    smooth
        Smooth pictures, not numbers, by a Gaussian of so many tiles.
    jobs
        Processes that read slides side by side.
    device
        Where the model runs: cpu, cuda, cuda:1, mps.
    dry_run
        Say what would be explained, and by which models.
    """
    from pipelines.explain import run as explain_run
    from pipelines.explain_plan import Options
    from wsi.explain import Question

    options = Options(
        run=run,
        slides=tuple(slides),
        out=out,
        only=tuple(slide or ()),
        question=Question(target, against),
        maps=tuple(dict.fromkeys(map or ("contrast",))),
        bags=bags,
        annotations=annotations,
        smoothing=smooth,
        jobs=jobs,
        device=device,
        dry_run=dry_run,
    )
    return explain_run(options, common.console())


@app.command(name="list", group=_LOOK)
def list_(
    what: Literal[
        "encoders", "aggregators", "objectives", "tissue", "stains", "readers", "stores", "metrics"
    ],
    *,
    common: Common = COMMON,
) -> int:
    """List what can be named in the settings, with the settings each has.

    Parameters
    ----------
    what
        Which kind of thing.
    """
    from pipelines.listing import run

    return run(what, common.console())


config = app.command(App(name="config", help="Show settings and what they mean.", group=_LOOK))


@config.command(name="show")
def config_show(*settings: Settings, common: Common = COMMON) -> int:
    """Print all settings as they would be used, as YAML that can be edited and given back."""
    from pipelines.config import as_yaml, load_config

    loaded = load_config(settings)
    common.console().result(loaded.model_dump(mode="json"))
    if not common.json:
        print(as_yaml(loaded), end="")
    return 0


@config.command(name="schema")
def config_schema(*, common: Common = COMMON) -> int:
    """Print every setting with type, default and meaning; with --json as JSON Schema."""
    from pipelines.listing import schema

    return schema(common.console())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; no traceback for what a user can mend."""
    code = run_command(sys.argv[1:] if argv is None else argv)
    if "pipelines.encoding" in sys.modules:
        _leave_encoding(code)
    sys.exit(code)


def _leave_encoding(code: int) -> None:
    """End the process at once where an encoder is at work that a stopped run did not wait for."""
    from pipelines.encoding import is_encoding
    from pipelines.workers import dismiss

    if is_encoding():
        dismiss()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(argv: Sequence[str]) -> int:
    """Return the exit code of one command line."""
    signal.signal(signal.SIGTERM, terminated)
    forget()
    _talking.clear()
    debug = "--debug" in argv
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _failed("USAGE", _first_line(error), 2, debug)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    except Stopped as stopped:
        return _interrupted(stopped.number)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _handled(error, debug)


def _interrupted(number: int) -> int:
    message = "stopped — run the same command again to go on"
    return _failed("INTERRUPTED", message, 128 + number, False)


def _handled(error: Exception, debug: bool) -> int:
    from wsi.errors import WsiError

    if isinstance(error, WsiError):
        return _failed(error.code, str(error), error.exit_code, debug)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in (ENOSPC, EDQUOT):
        message = "memory or disk ran out — free some and rerun; what was finished is kept"
        return _failed("NOSPACE", message, 4, debug)
    if isinstance(error, OSError):
        # A failed rename knows its target too, and only that one is known to the user.
        where = error.filename2 or error.filename or "a file"
        message = f"{where}: {error.strerror or error} — check the path and its permissions"
        return _failed("IO", message, 1, debug)
    message = f"{type(error).__name__}: {error} — this is a bug; rerun with --debug and report it"
    return _failed("BUG", message, 1, debug)


def _failed(code: str, message: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error[{code}]: {message}", file=sys.stderr)
    for console in _talking:
        console.failed(code, message)
    return exit_code


def _first_line(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    return f"{text} — see `wsi --help`, or `wsi COMMAND --help`"


if __name__ == "__main__":
    main()
