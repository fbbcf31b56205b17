"""`bags.json` of a run folder: what its bags were made of, for slides that come later."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.rundir import RunDir
from wsi.bags import BagInfo, BagStore, open_store
from wsi.cohorts import Cohort, SlideRow, match_ids
from wsi.errors import BagError, BagMissingError, ConfigError

SCHEMA = "wsi-run-bags/1"


@dataclass(frozen=True)
class UsedBag:
    """One bag that a run has used.

    Attributes:
        bag: its id, which may be longer than the slide's in the cohort.
        sha256: of the file of features.
        slide: fingerprint of the slide file.
        mpp: um per level-0 pixel; None where unknown.
    """

    bag: str
    sha256: str
    slide: str
    mpp: float | None


@dataclass(frozen=True)
class RunBags:
    """What a run knows of its bags.

    Attributes:
        key: of the recipe that all share.
        recipe: its settings, see `wsi.bags.Provenance.recipe`.
        encoder: what the encoder says of itself.
        slides: by slide id; empty where the run does not say.
    """

    key: str
    recipe: Mapping[str, Any]
    encoder: Mapping[str, Any]
    slides: Mapping[str, UsedBag]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"schema": SCHEMA, **asdict(self)}


def run_bags(store: BagStore, bag_ids: Mapping[str, str]) -> RunBags:
    """Return what is to be known of the bags of a run.

    Args:
        bag_ids: slide id to id of its bag.
    """
    sample = store.info(next(iter(bag_ids.values())))
    slides = {slide_id: _used(store.info(bag)) for slide_id, bag in sorted(bag_ids.items())}
    made = sample.provenance
    return RunBags(sample.recipe_key, made.recipe, made.encoder, slides)


def _used(info: BagInfo) -> UsedBag:
    made = info.provenance.slide
    return UsedBag(info.slide_id, info.sha256 or "", str(made["fingerprint"]), mpp_of(info))


def mpp_of(info: BagInfo) -> float | None:
    """Return the um per level-0 pixel of the slide of a bag, None where unknown."""
    mpp = info.provenance.slide.get("mpp")
    return None if not mpp else (float(mpp[0]) + float(mpp[1])) / 2


def bags_record(root: Path) -> Path:
    """Return where a run keeps it."""
    return root / "bags.json"


def read_run_bags(run_dir: RunDir) -> RunBags:
    """Return what a run recorded of its bags, or what its bags say where it recorded nothing.

    Raises:
        ConfigError: neither is to be had, or the record is damaged.
    """
    path = bags_record(run_dir.root)
    if not path.is_file():
        return _from_store(run_dir)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["schema"] != SCHEMA:
            raise ValueError(f"schema {held['schema']}, not {SCHEMA}")
        slides = {slide_id: UsedBag(**used) for slide_id, used in held["slides"].items()}
        return RunBags(held["key"], held["recipe"], held["encoder"], slides)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}) — restore the run folder") from error


def _from_store(run_dir: RunDir) -> RunBags:
    inputs = run_dir.read_inputs()
    try:
        store = open_store(inputs["bags"])
        found = run_bags(store, _matched(run_dir, store.ids()))
    except BagError as error:
        raise ConfigError(
            f"{run_dir.root} was trained before runs recorded their recipe, and its bags are no "
            f"longer to be had ({error}) — put them back at {inputs['bags']}"
        ) from error
    if found.key != inputs["recipe_key"]:
        raise ConfigError(
            f"the bags at {inputs['bags']} are of another recipe than the run {run_dir.root} was "
            "trained on — put the run's own back"
        )
    return found


def _matched(run_dir: RunDir, bag_ids: Sequence[str]) -> dict[str, str]:
    """Return the bag of each slide that a run of an earlier version has used."""
    with run_dir.splits.open(encoding="utf-8", newline="") as handle:
        ids = dict.fromkeys(row["slide_id"] for row in csv.DictReader(handle))
    rows = tuple(SlideRow(slide_id, slide_id) for slide_id in ids)
    found = match_ids(Cohort(str(run_dir.root), (), rows), bag_ids)
    if not found:
        raise BagMissingError("none of its slides has a bag there")
    return found
