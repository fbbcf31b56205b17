"""`wsi preprocess`: slides to bags, slide by slide; a bad slide never stops the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipelines.account import Account, allowed_quarantined, reasons_line
from pipelines.console import Console, counted
from pipelines.contact_sheet import write_sheet
from pipelines.encoders import ready_encoder
from pipelines.encoding import Encoding
from pipelines.extraction import Extraction, Job
from pipelines.lesions import Regions, count_lesions, read_lesions, report_lesions
from pipelines.own import check_own, tell_edited_in_place
from pipelines.plan import say_plan, too_coarse_lines
from pipelines.quarantine import Quarantine
from pipelines.queue import Queue
from pipelines.redraw import draw_done, draw_unusable
from pipelines.settings_change import redo_changed, refuse_changed
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Outcome, Target, Until, Work
from pipelines.stopping import Stop, stoppable
from pipelines.survey import listed_slides, note_lines, survey, tell_passed_over, unresolved_lines
from pipelines.tilecounts import TileCount, tiles_line, tiles_result
from pipelines.workers import check_device, encoding_threads, readers, reading_threads
from wsi.bags import create_store
from wsi.claims import Claims
from wsi.encoders import Encoder, encoder_info, load_encoder
from wsi.errors import BagMismatchError, ConfigError, ResourceError
from wsi.extract import Recipe, Tiling, make_recipe, settle_tiling
from wsi.files import check_case_twins, check_writable, collect_temporaries, inside
from wsi.lesions import Lesion
from wsi.pixels import plan_pixels
from wsi.specs import Component, Config, LimitsSpec
from wsi.staging import Stage
from wsi.supervision import Crew
from wsi.tissue import METHODS

_WAIT_S = 2.0  # between looks at what other processes work on
_BEAT_S = 10.0  # between signs of life
_OUTPUTS = ("", "tissue", "tiles", "thumbnails", "quarantine")


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings."""

    slides: tuple[Path, ...]
    out: Path
    jobs: int = 1
    device: str = "cpu"
    until: Until = "bags"
    dry_run: bool = False
    redo: bool = False
    retry_quarantined: bool = False
    allow_quarantined: str = "0"
    settle: float = 0.0
    max_bad_tiles: int = 0
    lesions: Path | None = None
    sheet: str = "report"  # file name of the contact sheet, without its suffix
    stage: Path | None = None
    stage_gb: float = 100.0
    wait: bool = False
    recheck_slides: bool = False
    accept: Callable[[Recipe], None] | None = None  # raises before a slide is read


def run(config: Config, options: Options, console: Console) -> int:
    """Return 0 when every slide is done or empty, 3 when some are quarantined."""
    check_device(options.device)
    allowed_quarantined(options.allow_quarantined, 0)
    METHODS.check(config.tissue.method.name, config.tissue.method.params)
    plan_pixels(config.pixels)
    if not options.dry_run:
        check_writable(options.out)  # before torch, which takes seconds to be imported
        for name in (*_OUTPUTS, "bags", "claims"):
            inside(options.out, options.out / name)
    for encoder in config.encoders:
        ready_encoder(encoder, console, embedding=options.until == "bags")
    groups = _by_tiling(config)
    crew = readers(options.jobs, config.limits, config.tissue.method.name.startswith("torch:"))
    found, closed = _survey(config, [tiling for tiling, _ in groups], options, crew, console)
    if not options.dry_run:
        check_case_twins(options.out, [item.file.slide_id for item in found])
    unresolved = [item for item in found if item.status != "ok"]
    check_own(options.out, found, config.tissue, console)
    lesions = read_lesions(options.lesions, found, console) if options.lesions else {}
    if config.slides.no_mpp == "stop" and any(i.status.endswith("mpp") for i in unresolved):
        console.warn("stopped before computing, as slides.no_mpp=stop asks")
        return 3
    if options.dry_run:
        codes = [
            say_plan(config, tiling, encoders, options.out, found, crew, console)
            for tiling, encoders in groups
        ]
        return max(*codes, closed and 3)
    codes = [closed and 3]
    for tiling, names in groups if options.until == "bags" else groups[:1]:
        work, encoders = _work(config, options, tiling, names)
        codes.append(_Run(work, options, found, console, crew, encoders, lesions).go())
    return max(codes)


def _by_tiling(config: Config) -> list[tuple[Tiling, list[Component]]]:
    """Return the encoders by their tiling: those of one share the reading of the slides."""
    groups: list[tuple[Tiling, list[Component]]] = []
    for encoder in config.encoders:
        tiling = settle_tiling(config.tiling, encoder_info(encoder))
        for known, names in groups:
            if known == tiling:
                names.append(encoder)
                break
        else:
            groups.append((tiling, [encoder]))
    return groups


def _work(
    config: Config, options: Options, tiling: Tiling, names: Sequence[Component]
) -> tuple[Work, list[Encoder]]:
    """Return what readers need to know, and the loaded encoders."""
    wanted = names if options.until == "bags" else ()
    encoders = [load_encoder(name, options.device, config.compute) for name in wanted]
    targets = []
    for encoder in encoders:
        recipe = make_recipe(config, encoder)
        if options.accept is not None:
            options.accept(recipe)
        targets.append(Target(recipe, recipe_folder(options.out, recipe.name, config.store)))
    work = Work(
        config,
        plan_pixels(config.pixels),
        tiling,
        tuple(targets),
        options.out,
        options.until,
        options.max_bad_tiles,
        reading_threads(options.jobs),
    )
    return work, encoders


def _survey(
    config: Config, tilings: Sequence[Tiling], options: Options, crew: Crew, console: Console
) -> tuple[list[Surveyed], int]:
    """Return all slides looked at and the number of folders that may not be, after saying both."""
    sources = listed_slides(options.slides)
    if not sources.files:
        raise ConfigError(f"no slides below {options.slides[0]} — check the path")
    found = survey(
        sources,
        config.slides,
        console,
        crew,
        settle=options.settle,
        slides_csv=options.out / "slides.csv",
        keep=not options.dry_run,
        recheck=options.recheck_slides,
    )
    for line in unresolved_lines(found):
        console.warn(line)
    for tiling in tilings:
        for line in too_coarse_lines(found, tiling):
            console.warn(line)
    for line in note_lines(found):
        console.say(line)
    tell_passed_over(sources, console)
    return found, len(sources.closed)


def recipe_folder(out: Path, recipe: str, store: str) -> Path:
    """Return the folder of a recipe's bags; a second file format gets a folder of its own."""
    folder = out / "bags" / recipe
    try:
        create_store(folder, store)
    except BagMismatchError:
        folder = folder.with_name(f"{recipe}-{store}")
        create_store(folder, store)
    return folder


class _Run:
    """One preprocessing run: what is left to do, doing it, and the account of it."""

    def __init__(
        self,
        work: Work,
        options: Options,
        found: Sequence[Surveyed],
        console: Console,
        crew: Crew,
        encoders: Sequence[Encoder],
        lesions: Regions,
    ) -> None:
        self.work = work
        self.options = options
        self.found = found
        self.console = console
        self.crew = crew
        self.encoders = encoders
        self.lesions = lesions
        self.store = work.store() if work.targets else None
        self.account = Account(found, Quarantine(options.out), console)
        self.started = time.monotonic()
        self.written = _Written(work.config.limits)

    def go(self) -> int:
        for k in range(len(self.work.targets)):
            redo, allowed = self.options.redo, self.options.max_bad_tiles
            check = redo_changed if redo else refuse_changed
            check(self.work, k, self.found, allowed)
        self._collect()
        try:
            with stoppable() as stop, ExitStack() as stack:
                self._extract(stop, stack)
        finally:
            self._sweep()  # of readers that were ended, or died, while they wrote
            self.account.close()
        draw_unusable(self.found, self.work, self.crew, self.console)
        draw_done(self.account.kept, self.work, self.crew, self.console)
        lesions = self._lesions()
        out, config, tiling = self.options.out, self.work.config, self.work.tiling
        sheet = write_sheet(out, config, tiling, self.store, self.options.sheet, lesions)
        return self._summary(sheet, lesions)

    def _extract(self, stop: Stop, stack: ExitStack) -> None:
        claims = stack.enter_context(self._claims())
        stage = self._stage(stack)
        queue = Queue(
            self.work,
            self.found,
            self.account,
            claims,
            stage,
            retry=self.options.retry_quarantined,
            redo=self.options.redo,
        )
        self._say_todo(queue)
        threads = encoding_threads()
        encoding = stack.enter_context(Encoding(self.encoders, self.options.device, threads))
        track = stack.enter_context(self.console.progress("tiles", 0))
        tiles = TileCount(track, len(queue))
        engine = Extraction(self.work, self.crew, self.encoders, encoding, tiles, stop.check)
        while True:
            for job, outcome in engine.outcomes(queue):
                self._take(queue, job, outcome)
            busy = queue.again()
            if queue.todo:
                continue
            if not (busy and self.options.wait):
                break
            self._wait(stop)
        self.account.elsewhere += busy
        self._say_troubles(encoding, stage)

    def _take(self, queue: Queue, job: Job, outcome: Outcome) -> None:
        self.account.add(job.item, outcome, is_ours=queue.is_ours(job.item))
        queue.release(job.item)
        self.written.add(outcome)
        if len(self.account.states) < len(self.found):
            self.written.check()

    def _wait(self, stop: Stop) -> None:
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until:
            stop.check()
            time.sleep(0.1)

    def _claims(self) -> Claims:
        ttl = self.work.config.limits.claim_ttl_s
        beat = min(_BEAT_S, ttl / 10)  # several may be missed
        return Claims(self.options.out / "claims", ttl_s=ttl, heartbeat_s=beat)

    def _stage(self, stack: ExitStack) -> Stage | None:
        if self.options.stage is None:
            return None
        return stack.enter_context(Stage(self.options.stage, round(self.options.stage_gb * 1e9)))

    def _collect(self) -> None:
        """Remove what earlier runs that were killed have left unfinished, and say so."""
        n = self._sweep()
        if n:
            self.console.say(f"{counted(n, 'unfinished file')} of killed runs removed")

    def _sweep(self) -> int:
        """Remove what ended processes have left unfinished, and return how much that was."""
        out = self.options.out
        folders = [out / name for name in _OUTPUTS]
        folders += [target.bags for target in self.work.targets]
        return sum(len(collect_temporaries(folder)) for folder in folders if folder.is_dir())

    def _say_todo(self, queue: Queue) -> None:
        kept = len(self.account.states) - self.account.count("quarantined")
        if kept:
            self.console.say(f"{counted(kept, 'slide')} done already")
        if queue.todo:
            names = [target.bags.name for target in self.work.targets]
            goal = f"recipe {' and '.join(names)}" if names else f"until {self.work.until}"
            self.console.say(f"{counted(len(queue), 'slide')} to do, {goal}")
        tell_edited_in_place(self.options.out, self.found, self.console)

    def _say_troubles(self, encoding: Encoding, stage: Stage | None) -> None:
        if encoding.halved:
            self.console.warn(
                f"the device ran out of memory {encoding.halved} times; batches are now of "
                f"{encoding.batch} tiles"
            )
        if stage is not None and stage.notes:
            path, why = next(iter(stage.notes.items()))
            n = counted(len(stage.notes), "slide")
            self.console.warn(f"{n} read in place, not from the stage: {path.name}: {why}")

    def _summary(self, sheet: Path, lesions: Sequence[Lesion]) -> int:
        account, say = self.account, self.console.say
        say(account.line())
        if self.work.until != "tissue":
            say(tiles_line(account.count("done") + account.count("empty"), account.tiles))
        if account.colours:
            say(str(account.colours))
        for line in filter(None, [account.time_line(time.monotonic() - self.started)]):
            say(line)
        for target in self.work.targets:
            say(f"bags: {target.bags}")
        say(f"report: {sheet}")
        if account.entries:
            say(f"quarantined: {account.quarantine.csv}")
            say(f"  {reasons_line(account.entries)}")
        if account.elsewhere:
            say("slides in progress elsewhere: run again later, or with --wait")
        result = account.result() | {
            "tiles": tiles_result(account.tiles),
            "bags": str(self.work.targets[0].bags) if self.work.targets else None,
            "recipes": [str(target.bags) for target in self.work.targets],
            "report": str(sheet),
            "seconds": {name: round(s, 2) for name, s in account.spent.items()},
        }
        if account.colours:
            result["colour"] = account.colours.counts
        if self.lesions:
            result["lesions"] = report_lesions(lesions, self.options.out, self.console)
        self.console.result(result)
        allowed = allowed_quarantined(self.options.allow_quarantined, len(self.found))
        return 3 if account.count("quarantined") > allowed else 0

    def _lesions(self) -> list[Lesion]:
        """Return what was annotated, counted; a table of an earlier run stays without --lesions."""
        if not self.lesions:
            return []
        out, tiling, failed = self.options.out, self.work.tiling, self.account.entries
        return count_lesions(self.lesions, self.found, out, tiling, self.store, failed)


class _Written:
    """Ends a run whose bags have taken as much room as it may take."""

    def __init__(self, limits: LimitsSpec) -> None:
        self._limits = limits
        self._bytes = self._files = 0

    def add(self, outcome: Outcome) -> None:
        """Count what a slide has taken."""
        self._bytes += outcome.bytes
        self._files += outcome.files

    def check(self) -> None:
        """Raise ResourceError when that is all a run may take."""
        max_gb, max_files = self._limits.max_gb, self._limits.max_files
        if max_gb is not None and self._bytes >= max_gb * 1e9:
            raise ResourceError(
                f"{self._bytes / 1e9:.2f} GB of bags written, as limits.max_gb={max_gb:g} allows — "
                "run again to go on, nothing was lost"
            )
        if max_files is not None and self._files >= max_files:
            raise ResourceError(
                f"{counted(self._files, 'bag')} written, as limits.max_files={max_files} allows — "
                "run again to go on, nothing was lost"
            )
