"""`wsi preprocess`: slides to bags, slide by slide; a bad slide never stops the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.colour import Colours
from pipelines.console import Console, counted
from pipelines.contact_sheet import write_sheet
from pipelines.encoders import ready_encoder
from pipelines.lesions import Regions, count_lesions, read_lesions, report_lesions
from pipelines.own import check_own, own_tissue, tell_edited_in_place
from pipelines.plan import is_too_coarse, say_plan, too_coarse_lines
from pipelines.quarantine import Entry, failed, read_quarantine, write_quarantine
from pipelines.redraw import Done, draw_done, draw_unusable
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Outcome, TileCount, Until, Work, in_parallel, one_slide
from pipelines.survey import (
    SETTLING,
    listed_slides,
    note_lines,
    survey,
    tell_passed_over,
    unresolved_lines,
)
from pipelines.tilecounts import bad_line, fates, refuse_bad, tiles_line, tiles_result
from pipelines.workers import check_device, reading_threads
from wsi.bags import create_store
from wsi.encoders import Encoder, encoder_info, load_encoder
from wsi.errors import BagMismatchError, ConfigError, NeedsUpsamplingError
from wsi.extract import make_recipe, settle_tiling
from wsi.lesions import Lesion
from wsi.pixels import plan_pixels
from wsi.specs import Config
from wsi.tissue import METHODS

_TRANSIENT = (
    "no-mpp",
    "implausible-mpp",
    "open-failed",
    "unsupported-format",
    "missing-file",
    "io-error",
    SETTLING,
)


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


def run(config: Config, options: Options, console: Console) -> int:
    """Return 0 when every slide is done or empty, 3 when some are quarantined."""
    check_device(options.device)
    allowed_quarantined(options.allow_quarantined, 0)
    METHODS.check(config.tissue.method.name, config.tissue.method.params)
    pixels = plan_pixels(config.pixels)
    ready_encoder(config.encoder, console, embedding=options.until == "bags")
    found, closed = _survey(config, options, console)
    unresolved = [item for item in found if item.status != "ok"]
    check_own(options.out, found, config.tissue, console)
    lesions = read_lesions(options.lesions, found, console) if options.lesions else {}
    if config.slides.no_mpp == "stop" and any(i.status.endswith("mpp") for i in unresolved):
        console.warn("stopped before computing, as slides.no_mpp=stop asks")
        return 3
    if options.dry_run:
        return max(say_plan(config, options.out, found, console), closed and 3)
    encoder = (
        load_encoder(config.encoder, options.device, config.compute)
        if options.until == "bags"
        else None
    )
    recipe = make_recipe(config, encoder) if encoder else None
    folder = recipe_folder(options.out, recipe.name, config.store) if recipe else options.out
    work = Work(
        config,
        pixels,
        recipe,
        folder,
        options.out,
        options.device,
        options.until,
        options.max_bad_tiles,
        reading_threads(options.jobs),
    )
    code = _Run(work, options, found, console, encoder, lesions).go()
    return max(code, closed and 3)


def _survey(config: Config, options: Options, console: Console) -> tuple[list[Surveyed], int]:
    """Return all slides looked at and the number of folders that may not be, after saying both."""
    sources = listed_slides(options.slides)
    if not sources.files:
        raise ConfigError(f"no slides below {options.slides[0]} — check the path")
    found = survey(
        sources,
        config.slides,
        console,
        jobs=options.jobs,
        settle=options.settle,
        slides_csv=options.out / "slides.csv",
        keep=not options.dry_run,
    )
    tiling = settle_tiling(config.tiling, encoder_info(config.encoder))
    for line in (*unresolved_lines(found), *too_coarse_lines(found, tiling)):
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
        encoder: Encoder | None,
        lesions: Regions,
    ) -> None:
        self.work = work
        self.options = options
        self.found = found
        self.console = console
        self.encoder = encoder
        self.lesions = lesions
        self.store = create_store(work.bags, work.config.store) if work.recipe else None
        self.quarantine_csv = options.out / "quarantine.csv"
        self.before = read_quarantine(self.quarantine_csv)
        self.entries: dict[str, Entry] = {}
        self.states = {"done": 0, "empty": 0}
        self.tiles: Counter[str] = Counter()
        self.colours = Colours()
        self.kept: list[Done] = []

    def go(self) -> int:
        self._refuse_changed_settings()
        self._refuse_bad_tiles()
        todo = list(self._todo())
        kept = sum(self.states.values())
        if kept:
            self.console.say(f"{counted(kept, 'slide')} done already")
        by_id = {item.file.slide_id: item for item in todo}
        if todo:
            self.console.say(f"{counted(len(todo), 'slide')} to do, recipe {self.work.bags.name}")
        tell_edited_in_place(self.options.out, todo, self.console)
        with self.console.progress("tiles", 0) as track:
            tiles = TileCount(track, len(todo))
            for outcome in self._outcomes(todo, tiles):
                self._account(by_id[outcome.slide_id], outcome)
        self._write_quarantine()
        draw_unusable(self.found, self.work, self.options.jobs, self.console)
        draw_done(self.kept, self.work, self.options.jobs, self.console)
        out, config, tiling = self.options.out, self.work.config, self.work.tiling
        lesions = self._lesions()
        sheet = write_sheet(out, config, tiling, self.store, self.options.sheet, lesions)
        return self._summary(sheet, lesions)

    def _refuse_changed_settings(self) -> None:
        """Stop when done bags were made with other settings than now asked for."""
        if self.store is None or self.work.recipe is None:
            return
        ids = {item.file.slide_id for item in self.found}
        info = next((item.info for item in self.found if item.info and item.info.mpp), None)
        if info is None:
            return
        key = self.work.recipe.provenance(info).recipe_key
        changed = [b for b in self.store.infos() if b.recipe_key != key and b.slide_id in ids]
        if not changed:
            return
        if not self.options.redo:
            names = _differences(
                changed[0].provenance.recipe, self.work.recipe.provenance(info).recipe
            )
            raise ConfigError(
                f"{len(changed)} bags in {self.work.bags} were made with other settings "
                f"({names}) — add --redo to make them again, or give another --out"
            )
        for bag in changed:
            self.store.remove(bag.slide_id)

    def _refuse_bad_tiles(self) -> None:
        """Stop when done bags lack more tiles than now allowed; --redo makes them again.

        With --redo also go the bags that were made before tiles had scores.
        """
        if self.store is None:
            return
        ids = {item.file.slide_id for item in self.found}
        infos = [info for info in self.store.infos() if info.slide_id in ids]
        if not self.options.redo:
            refuse_bad(infos, self.options.max_bad_tiles)
            return
        for info in infos:
            lacking = info.status == "done" and not info.scores
            if lacking or len(info.bad_tiles) > self.options.max_bad_tiles:
                self.store.remove(info.slide_id)

    def _todo(self) -> Iterator[Surveyed]:
        for item in self.found:
            slide_id, info = item.file.slide_id, item.info
            earlier = self.before.get(slide_id)
            if item.status != "ok" or info is None:
                self._quarantine(item, item.status, item.reason)
            elif self._is_done(item):
                continue
            elif earlier and not self._worth_a_retry(earlier, item):
                self.entries[slide_id] = earlier
            else:
                yield item

    def _is_done(self, item: Surveyed) -> bool:
        if self.store is None or self.work.recipe is None or item.info is None:
            return False
        own = own_tissue(self.work.out, item.file, item.info, self.work.config.tissue)
        key = self.work.recipe.provenance(item.info, own=own).key
        if not self.store.holds(item.file.slide_id, key):
            return False
        info = self.store.info(item.file.slide_id)
        self.kept.append((item, info))
        self.states[info.status] += 1
        self.tiles.update(fates(info))
        if info.bad_tiles:
            self.console.warn(bad_line(info))
        self.colours.add(info.provenance.pixels.get("fitted", {}).get("colour", ""))
        return True

    def _worth_a_retry(self, earlier: Entry, item: Surveyed) -> bool:
        changed = item.info is not None and earlier.fingerprint != item.info.fingerprint
        allowed = 0 < earlier.bad_tiles <= self.options.max_bad_tiles
        fits = earlier.reason == NeedsUpsamplingError.reason and not is_too_coarse(
            item, self.work.tiling
        )
        asked = self.options.retry_quarantined or allowed or fits
        return asked or changed or earlier.reason in _TRANSIENT

    def _outcomes(self, todo: Sequence[Surveyed], tiles: TileCount) -> Iterator[Outcome]:
        if self.options.jobs <= 1 or len(todo) <= 1:
            yield from (one_slide(self.work, item, self.encoder, tiles) for item in todo)
            return
        for outcome in in_parallel(self.work, todo, self.options.jobs):
            tiles.located(outcome.tiles)
            tiles.read(outcome.tiles)
            yield outcome

    def _account(self, item: Surveyed, outcome: Outcome) -> None:
        if outcome.state in self.states:
            self.states[outcome.state] += 1
            self.tiles.update(outcome.fates)
            if outcome.warning:
                self.console.warn(outcome.warning)
            self.colours.add(outcome.colour)
            if outcome.colour in ("damaged-profile", "not-an-rgb-profile"):
                self.console.warn(
                    f"{outcome.slide_id}: {outcome.colour}: its tiles are left as scanned — "
                    "copy it again from its source, or have its profile mended"
                )
            self.console.detail(f"{outcome.slide_id}: {outcome.state}, {outcome.tiles} tiles")
            if outcome.state == "empty":
                self.console.warn(f"{outcome.slide_id} is empty: {outcome.message}")
        else:
            self._quarantine(item, outcome.state, outcome.message, outcome.bad_tiles)
            if outcome.state != NeedsUpsamplingError.reason:  # the survey has named these
                self.console.warn(f"{outcome.slide_id}: {outcome.state}: {outcome.message}")
        self._write_quarantine()

    def _quarantine(self, item: Surveyed, reason: str, message: str, bad_tiles: int = 0) -> None:
        slide_id = item.file.slide_id
        fingerprint = item.info.fingerprint if item.info else ""
        earlier = self.before.get(slide_id)
        if earlier and reason in _TRANSIENT and earlier.reason == reason:
            self.entries[slide_id] = earlier  # looked at again, but nothing was tried
            return
        self.entries[slide_id] = failed(
            earlier, slide_id, item.file.path.name, reason, message, fingerprint, bad_tiles
        )

    def _write_quarantine(self) -> None:
        waiting = {i: e for i, e in self.before.items() if i not in self.entries}
        ids = {item.file.slide_id for item in self.found}
        others = {i: e for i, e in waiting.items() if i not in ids}
        entries = others | self.entries
        if entries or self.quarantine_csv.exists():
            write_quarantine(self.quarantine_csv, entries)

    def _summary(self, sheet: Path, lesions: Sequence[Lesion]) -> int:
        done, empty, bad = self.states["done"], self.states["empty"], len(self.entries)
        text = f"{counted(len(self.found), 'slide')}: {done} done, {empty} empty, {bad} quarantined"
        self.console.say(text)
        if self.work.until != "tissue":
            self.console.say(tiles_line(done + empty, self.tiles))
        if self.colours:
            self.console.say(str(self.colours))
        if self.work.until == "bags":
            self.console.say(f"bags: {self.work.bags}")
        self.console.say(f"report: {sheet}")
        if bad:
            self.console.say(f"quarantined: {self.quarantine_csv}")
        result = {
            "total": len(self.found),
            "done": done,
            "empty": empty,
            "quarantined": bad,
            "tiles": tiles_result(self.tiles),
            "bags": str(self.work.bags) if self.work.recipe else None,
            "report": str(sheet),
        }
        if self.colours:
            result["colour"] = self.colours.counts
        if self.lesions:
            result["lesions"] = report_lesions(lesions, self.options.out, self.console)
        self.console.result(result)
        allowed = allowed_quarantined(self.options.allow_quarantined, len(self.found))
        return 3 if bad > allowed else 0

    def _lesions(self) -> list[Lesion]:
        """Return what was annotated, counted; a table of an earlier run stays without --lesions."""
        if not self.lesions:
            return []
        out, tiling = self.options.out, self.work.tiling
        return count_lesions(self.lesions, self.found, out, tiling, self.store, self.entries)


def allowed_quarantined(text: str, total: int) -> int:
    """Return how many quarantined slides `N` or `P%` allow.

    Raises:
        ConfigError: it is neither.
    """
    try:
        if text.endswith("%"):
            return int(float(text[:-1]) / 100 * total)
        return int(text)
    except ValueError:
        raise ConfigError(f"--allow-quarantined {text}: give a number, or a share as 5%") from None


def _differences(old: dict, new: dict) -> str:
    """Return the settings that differ, old -> new."""
    pairs = []
    for part in ("tiling", "tissue", "quality", "pixels"):
        before, after = old.get(part, {}), new.get(part, {})
        pairs += [
            f"{part}.{key} {before.get(key)} -> {after.get(key)}"
            for key in before | after
            if before.get(key) != after.get(key)
        ]
    if old["encoder"] != new["encoder"]:
        pairs.append("another version of the encoder")
    if old["precision"] != new["precision"]:
        pairs.append(f"precision {old['precision']} -> {new['precision']}")
    return ", ".join(pairs) or "unknown"
