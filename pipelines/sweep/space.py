"""What a sweep searches: settings by dotted key, each a range or choices, checked beforehand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.config import with_values
from wsi.aggregators import AGGREGATORS
from wsi.errors import ConfigError, WsiError
from wsi.objectives import check_objective
from wsi.specs import Config, RangeSpec

Scalar = str | int | float | bool | None
Values = dict[str, Scalar]
"""The drawn value of each key; a choice that is a list or mapping stands as text."""

SEARCHED = ("aggregator", "objective", "fit")
_FIXED = ("fit.seeds", "fit.monitor")  # trials of other seeds or figures are not comparable
_EDGE = 0.05  # of a range, in which a drawn value lies at its end
_MOST_COMBINED = 400
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: a range, or choices by label.

    Attributes:
        choices: what each label stands for, when it is no range.
    """

    key: str
    range: RangeSpec | None
    choices: Mapping[Scalar, Any]

    def value(self, drawn: Scalar) -> Any:
        """Return the value of the setting for what was drawn."""
        return drawn if self.range is not None else self.choices[drawn]

    @property
    def telling(self) -> list[Scalar]:
        """Return the values that all others lie between: both ends, or every choice."""
        if self.range is None:
            return list(self.choices)
        return [_number(self.range.low, self.range), _number(self.range.high, self.range)]

    @property
    def middle(self) -> Scalar:
        """Return a value from the middle."""
        if self.range is None:
            return list(self.choices)[len(self.choices) // 2]
        low, high = self.range.low, self.range.high
        between = math.sqrt(low * high) if self.range.log else (low + high) / 2
        if self.range.step is not None:
            between = low + (between - low) // self.range.step * self.range.step
        return _number(between, self.range)

    def steps(self) -> list[Scalar]:
        """Return every value, in order.

        Raises:
            ConfigError: there is no end of them.
        """
        if self.range is None:
            return list(self.choices)
        step = self.range.step or (1.0 if self.range.int and not self.range.log else None)
        if step is None:
            raise ConfigError(
                f"sweep.sampler=grid: {self.key} is a range without a step — give step, or a list "
                "of choices"
            )
        n = math.floor((self.range.high - self.range.low) / step + 1e-9) + 1
        return [_number(self.range.low + k * step, self.range) for k in range(n)]

    def edge(self, drawn: Scalar) -> str | None:
        """Return `lowest` or `highest` where a value lies at an end of its range of numbers.

        An end at 0 is none: what is searched is rarely meant below.
        """
        ordered = self._ordered
        if len(ordered) < 3 or not _is_number(drawn):
            return None
        low, high, place = (self._scaled(value) for value in (ordered[0], ordered[-1], drawn))
        near = _EDGE * (high - low) if self.range is not None else 0.0
        if place <= low + near:
            return "lowest" if ordered[0] != 0 else None
        return "highest" if place >= high - near else None

    @property
    def _ordered(self) -> list[float]:
        if self.range is not None:
            return [self.range.low, math.nan, self.range.high]
        numbers: list[Any] = [value for value in self.choices if _is_number(value)]
        return sorted(numbers) if len(numbers) == len(self.choices) else []

    def _scaled(self, value: Any) -> float:
        return math.log(value) if self.range is not None and self.range.log else float(value)

    def __str__(self) -> str:
        if self.range is None:
            return f"{self.key}: {', '.join(map(shown, self.choices))}"
        step = f" by {self.range.step:g}" if self.range.step else ""
        words = [word for word in ("log", "int") if getattr(self.range, word)]
        more = f" ({', '.join(words)})" if words else ""
        return f"{self.key}: {self.range.low:g} to {self.range.high:g}{step}{more}"

    def to_json(self) -> Any:
        """Return the range as it is written in settings, or the choices as trials name them."""
        if self.range is None:
            return list(self.choices)
        return self.range.model_dump(mode="json", exclude_defaults=True)


Space = tuple[Dimension, ...]


def space_of(config: Config) -> Space:
    """Return what is searched, every key and value of it checked.

    Raises:
        ConfigError: a key is unknown or fixed, or a value is not allowed; all are listed.
    """
    given = config.sweep.space or default_space(config)
    space = tuple(_dimension(key, one) for key, one in given.items())
    problems = list(dict.fromkeys(_problems(config, space)))
    if problems:
        raise ConfigError("sweep.space: " + "; ".join(problems))
    return space


def default_space(config: Config) -> dict[str, RangeSpec | tuple[Any, ...]]:
    """Return what is searched when nothing is said: rate, weight decay, dropout where there is."""
    space: dict[str, RangeSpec | tuple[Any, ...]] = {
        "fit.lr": RangeSpec(low=1e-5, high=1e-2, log=True),
        "fit.weight_decay": RangeSpec(low=1e-6, high=1e-1, log=True),
    }
    if "dropout" in AGGREGATORS.settings(config.aggregator.name):
        space["aggregator.dropout"] = (0.0, 0.25, 0.5)
    return space


def trial_config(config: Config, space: Space, drawn: Mapping[str, Scalar]) -> Config:
    """Return the settings of a trial: those of the sweep with the drawn values.

    Raises:
        ConfigError: the values do not go together.
    """
    values = {one.key: one.value(drawn[one.key]) for one in space}
    made = with_values(config, values)
    plain = made.model_copy(update={"sweep": type(made.sweep)()})
    objective = plain.objective
    AGGREGATORS.check(plain.aggregator.name, plain.aggregator.params)
    n_classes = len(plain.data.classes) if plain.data.classes else None
    check_objective(objective.name, objective.params, plain.fit.bags_per_step, n_classes)
    return plain


def grid(space: Space) -> Iterator[Values]:
    """Yield every combination, the last key changing fastest.

    Raises:
        ConfigError: a range has no steps, or there are too many combinations.
    """
    steps = [one.steps() for one in space]
    if math.prod(map(len, steps)) > _LARGEST_GRID:
        raise ConfigError(
            f"sweep.sampler=grid: {math.prod(map(len, steps)):,} combinations — take larger "
            "steps, or sampler=tpe"
        )
    for combination in itertools.product(*steps):
        yield dict(zip((one.key for one in space), combination, strict=True))


def shown(value: Any) -> str:
    """Return a value as people write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _dimension(key: str, given: RangeSpec | Sequence[Any]) -> Dimension:
    if isinstance(given, RangeSpec):
        return Dimension(key, given, {})
    return Dimension(key, None, {_label(value): value for value in given})


def _label(value: Any) -> Scalar:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict) and "name" in value:
        told = ", ".join(f"{key}={one}" for key, one in value.items() if key != "name")
        return f"{value['name']} ({told})"
    return json.dumps(value, ensure_ascii=False)


def _problems(config: Config, space: Space) -> Iterator[str]:
    """Yield what is wrong with single values, and, where nothing is, with pairs of them."""
    alone = [p for one in space for p in _problems_alone(config, one)]
    yield from alone
    if alone:
        return
    for pair in itertools.combinations(space, 2):
        combined = itertools.product(*(one.telling for one in pair))
        for values in itertools.islice(combined, _MOST_COMBINED):
            told = _refused(config, pair, values)
            if told:
                yield f"{_together(pair, values)}: {told}"
                break


def _problems_alone(config: Config, one: Dimension) -> Iterator[str]:
    if one.key in _FIXED or one.key.partition(".")[0] not in SEARCHED:
        known = _refused(config, (one,), one.telling[:1])
        if known and known.startswith("unknown setting"):
            yield known
        else:
            yield (
                f"{one.key} is the same for all trials of a sweep — search settings of "
                f"{', '.join(SEARCHED)} but {' and '.join(_FIXED)}"
            )
        return
    told = (_refused(config, (one,), [value]) for value in one.telling)
    yield from dict.fromkeys(problem for problem in told if problem)


def _refused(config: Config, dimensions: Sequence[Dimension], values: Sequence[Scalar]) -> str:
    """Return why a trial cannot have these values, the others being as in the settings."""
    drawn = {one.key: value for one, value in zip(dimensions, values, strict=True)}
    attempt = partial(trial_config, config, tuple(dimensions), drawn)
    try:
        attempt()
    except WsiError as error:
        return str(error)
    return ""


def _together(pair: Sequence[Dimension], values: Sequence[Scalar]) -> str:
    return " with ".join(f"{one.key}={shown(value)}" for one, value in zip(pair, values))


def _number(value: float, spec: RangeSpec) -> float | int:
    return round(value) if spec.int else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
