"""What a study fits: arms, seeds, splits by each way of validating, cells of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.console import Console, counted
from pipelines.fits import Material, splits_of
from pipelines.patient_bags import BagIds
from wsi.aggregators import check_aggregator
from wsi.errors import CohortError, ConfigError, WsiError
from wsi.evaluation.metrics import metric_named
from wsi.files import sha256_json
from wsi.objectives import OBJECTIVES, check_objective
from wsi.specs import ArmSpec, Component, Config, ValidationSpec
from wsi.splits import Fold, Splits, revalidated

FEW_SEEDS = 8
"""Below this many the spread over seeds is hardly known, and a warning says so."""
_LEAST_SITES = 3


@dataclass(frozen=True)
class CellId:
    """One fit of a study."""

    selection: str
    arm: str
    rate: float
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Return where its folder lies below `cells`, which is also what is claimed."""
        return f"{self.selection}/{self.arm}/{self.rate:g}/fold{self.fold}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All that the fits of a study have in common, as every process gets it once.

    Attributes:
        configs: settings of each arm by label; only the rate is still to be set.
        folds: folds by number, of each way of validating.
        labels: class index of every slide; a fit is handed those of its own train and val only.
        seeds: of the final fits; the first `rate_seeds` of them tune the rate.
        keys: what the fits of a selection depend on beside arm, rate, fold and seed, as a hash.
    """

    root: Path
    configs: Mapping[str, Config]
    folds: Mapping[str, Mapping[int, Fold]]
    labels: Mapping[str, int]
    seeds: tuple[int, ...]
    rate_seeds: int
    rates: tuple[float, ...]
    bags: Path
    bag_ids: BagIds
    packed: Path | None
    dim: int
    device: str
    keys: Mapping[str, str]
    recipe_key: str
    keep_models: bool = False

    def config(self, cell: CellId) -> Config:
        """Return the settings of a fit."""
        config = self.configs[cell.arm]
        return config.model_copy(
            update={"fit": config.fit.model_copy(update={"lr": cell.rate, "seeds": (cell.seed,)})}
        )

    def fold(self, cell: CellId) -> Fold:
        """Return the fold of a fit."""
        return self.folds[cell.selection][cell.fold]

    def folder(self, cell: CellId) -> Path:
        """Return the folder of a fit."""
        return self.root / "cells" / cell.name

    def key(self, cell: CellId) -> str:
        """Return the hash of all that a fit depends on."""
        config = self.config(cell)
        settings = {
            name: getattr(config, name).model_dump(mode="json")
            for name in ("data", "aggregator", "objective", "fit")
        }
        return sha256_json([self.keys[cell.selection], settings, cell.fold])

    def rate_cells(self) -> list[CellId]:
        """Return the fits that tune the rates: every arm gets the same ones."""
        seeds = self.seeds[: self.rate_seeds]
        return [
            cell
            for selection in self.folds
            for seed in seeds
            for rate in self.rates
            for arm in self.configs
            for cell in self._over_folds(selection, arm, rate, [seed])
        ]

    def final_cells(self, chosen: Mapping[str, Mapping[str, float]]) -> list[CellId]:
        """Return the fits of every arm at its chosen rate, by selection and label of the arm."""
        return [
            cell
            for seed in self.seeds
            for selection, rates in chosen.items()
            for arm, rate in rates.items()
            for cell in self._over_folds(selection, arm, rate, [seed])
        ]

    def _over_folds(
        self, selection: str, arm: str, rate: float, seeds: Iterable[int]
    ) -> list[CellId]:
        folds = self.folds[selection]
        return [CellId(selection, arm, rate, fold, seed) for seed in seeds for fold in folds]


def check_arms(config: Config) -> dict[str, Config]:
    """Return the settings of each arm by its label.

    Raises:
        ConfigError: an arm names no objective or aggregator of ours, or a setting it lacks; all
            problems are listed.
    """
    problems, configs = _without_effect(config), {}
    bags_per_step = config.fit.bags_per_step
    n_classes = len(config.data.classes) if config.data.classes else None
    for name in config.study.metrics:
        try:
            metric_named(name)
        except WsiError as error:
            problems.append(str(error))
    for arm in config.study.arms:
        configs[arm.label] = _arm_config(config, arm)
        objective, aggregator = configs[arm.label].objective, configs[arm.label].aggregator
        for check in (
            partial(check_objective, objective.name, objective.params, bags_per_step, n_classes),
            partial(_check_aggregator, aggregator, objective),
        ):
            try:
                check()
            except WsiError as error:
                problems.append(f"study.arms: {arm.label}: {error}")
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return configs


def _without_effect(config: Config) -> list[str]:
    """Return complaints about a component that was given, and that no arm uses."""
    problems = []
    for kind in ("objective", "aggregator"):
        given: Component = getattr(config, kind)
        named = [getattr(arm, kind) for arm in config.study.arms]
        # An arm without one of its own takes what was given.
        if None not in named and given not in named and given != getattr(Config(), kind):
            problems.append(
                f"{kind}={given.name} acts on no arm, as each names its own — put it into "
                "study.arms, with its settings, or leave it out"
            )
    return problems


def _check_aggregator(aggregator: Component, objective: Component) -> None:
    wants = OBJECTIVES.load(objective.name).wants
    check_aggregator(aggregator.name, aggregator.params, wants)


def _arm_config(config: Config, arm: ArmSpec) -> Config:
    update: dict[str, Any] = {}
    if arm.objective is not None:
        update["objective"] = arm.objective
    if arm.aggregator is not None:
        update["aggregator"] = arm.aggregator
    return config.model_copy(update=update)


def seeds_of(config: Config, *, allow_few: bool, console: Console) -> tuple[int, ...]:
    """Return the seeds of the final fits: fit.seeds, completed to study.least_seeds by the next.

    Raises:
        ConfigError: fewer seeds than shall tune the rate.
    """
    seeds = list(config.fit.seeds)
    least = 1 if allow_few else config.study.least_seeds
    if len(seeds) < least:
        missing = least - len(seeds)
        seeds += range(max(seeds) + 1, max(seeds) + 1 + missing)
        console.say(
            f"fit.seeds has {len(config.fit.seeds)}, study.least_seeds is {least}: "
            f"the seeds are {', '.join(map(str, seeds))} (--allow-few-seeds keeps fit.seeds)"
        )
    for remark in few_seeds(seeds):
        console.warn(remark)
    if config.study.rate_seeds > len(seeds):
        raise ConfigError(
            f"study.rate_seeds={config.study.rate_seeds} of {len(seeds)} seeds — lower it, or "
            "give more fit.seeds"
        )
    return tuple(seeds)


def few_seeds(seeds: Sequence[int]) -> list[str]:
    """Return the remark that a study of few seeds needs wherever its figures stand."""
    if len(seeds) >= FEW_SEEDS:
        return []
    return [
        f"{counted(len(seeds), 'seed')}, fewer than {FEW_SEEDS}: differences are exploratory — "
        f"fit.seeds={FEW_SEEDS} bears more"
    ]


def splits_by_selection(
    config: Config, material: Material, table: Path | None, console: Console
) -> tuple[dict[str, Splits], list[str]]:
    """Return the splits of each way of validating, and notes on those that cannot be had.

    Test parts are the same throughout; a validation part that a table gives stays as it is where
    it was drawn in that way.

    Raises:
        CohortError: no way of validating is left.
    """
    first = splits_of(material, config.split, table)
    found: dict[str, Splits] = {}
    notes = []
    for selection in config.study.selection:
        try:
            found[selection] = _validated(selection, first, config, material)
        except CohortError as error:
            if len(config.study.selection) == 1:
                raise
            notes.append(f"no selection by {selection}: {error}")
    for note in notes:
        console.warn(note)
    if not found:
        raise CohortError("; ".join(notes))
    return found, notes


def _validated(selection: str, first: Splits, config: Config, material: Material) -> Splits:
    sites = {row.site for row in material.cohort.rows if row.site is not None}
    if selection == "site" and len(sites) < _LEAST_SITES:
        raise CohortError(
            f"the cohort has {len(sites)} sites, fewer than the {_LEAST_SITES} that leaving one "
            "out for validation and one for testing takes — use study.selection=[patient]"
        )
    if _drawn_by(first) == selection and all(fold.val for fold in first.folds):
        return first
    seed = config.split.seed
    by: Any = selection
    spec = config.split.val.model_copy(update={"by": by})
    return revalidated(first, material.cohort, ValidationSpec.model_validate(spec), seed)


def _drawn_by(splits: Splits) -> str:
    """Return how validation parts were drawn; those of unknown origin count as by patient."""
    val = splits.settings.get("val")
    by = val.get("by") if isinstance(val, Mapping) else None
    return by if by in ("site", "slide") else "patient"


def keys_of(
    splits: Mapping[str, Splits], labels: Mapping[str, int], inputs: Mapping[str, Any]
) -> dict[str, str]:
    """Return, by selection, the hash of splits, labels and bags."""
    made_from = [inputs["bags_sha256"], inputs["recipe_key"], dict(labels)]
    return {name: sha256_json([split.hash, *made_from]) for name, split in splits.items()}


def by_number(splits: Splits) -> dict[int, Fold]:
    """Return the folds of splits by number."""
    return {fold.index: fold for fold in splits.folds}


def with_root(plan: Plan, root: Path) -> Plan:
    """Return the same plan with its cells below another folder."""
    return replace(plan, root=root)


def listed(values: Sequence[float]) -> str:
    """Return rates as people write them."""
    return ", ".join(f"{value:g}" for value in values)
