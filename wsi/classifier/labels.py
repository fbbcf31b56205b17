"""Labels of any kind to class indices, and back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from wsi.errors import ConfigError

_PLAIN = (str, bool, int, float)


def as_list(values: Any, what: str, n: int) -> list[Any]:
    """Return one value per bag, from a list, an array, a tensor or a column of a table.

    Raises:
        ConfigError: there are not `n`, or one is missing or not hashable.
    """
    given = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(given) != n:
        raise ConfigError(f"{n} bags have {len(given)} {what} — give one per bag")
    for index, value in enumerate(given):
        if not isinstance(value, Hashable):
            raise ConfigError(f"{what}[{index}] is {value!r} — give one plain value per bag")
        if value is None or value != value:  # NaN alone differs from itself
            raise ConfigError(f"{what}[{index}] is missing — leave the bag out, or give a value")
    return given


def classes_of(labels: Sequence[Any]) -> np.ndarray:
    """Return the distinct labels (C,), sorted, or as they first come where they have no order.

    Raises:
        ConfigError: there are fewer than two, or two that read the same.
    """
    distinct: list[Any] = list(dict.fromkeys(labels))
    if len(distinct) < 2:
        raise ConfigError(
            f"y holds one class only ({distinct[0]!r}) — give bags of two classes or more"
            if distinct
            else "there is no bag to train on — give at least two, of different classes"
        )
    with suppress(TypeError):  # of labels without an order
        distinct.sort()
    if len({str(label) for label in distinct}) < len(distinct):
        raise ConfigError(
            f"two of the classes {', '.join(map(repr, distinct))} read the same — rename one"
        )
    return as_array(distinct)


def as_array(labels: Sequence[Any]) -> np.ndarray:
    """Return labels as an array (n,), of objects where NumPy has no type of its own for them."""
    kinds = {type(label) for label in labels}
    if len(kinds) == 1 and kinds <= set(_PLAIN):
        return np.array(labels)
    array = np.empty(len(labels), dtype=object)
    array[:] = list(labels)
    return array


def codes_of(labels: Iterable[Any], classes: Iterable[Any]) -> list[int]:
    """Return the index of each label among the classes."""
    index = {label: code for code, label in enumerate(classes)}
    return [index[label] for label in labels]


def storable(classes: np.ndarray) -> list[Any]:
    """Return the classes as JSON keeps them.

    Raises:
        ConfigError: they are neither text nor numbers.
    """
    values = classes.tolist()
    if not all(isinstance(value, _PLAIN) for value in values):
        raise ConfigError(
            f"a checkpoint keeps text and numbers as classes, not {values[0]!r} — rename them"
        )
    return values
