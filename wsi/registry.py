"""Names to things, loaded only when asked for, with a suggestion for a near miss."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wsi.errors import ConfigError, UnknownNameError


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Registry:
    """A table of `name -> "module:attribute"`, completed by entry points of other packages.

    A name that ends in a word in angle brackets stands for a family: `torch:<network>` takes any
    name that begins with `torch:`, and what follows is handed over as the parameter `network`.

    Args:
        kind: what is registered, for messages: `aggregator`.
        table: short lower-case names and where each is defined.
        group: the entry-point group by which other packages add names.
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str) -> None:
        self.kind = kind
        self.group = group
        self._table = dict(table)

    def names(self) -> list[str]:
        """Return all names: ours first, in table order, then those of other packages."""
        return list(self._targets)

    def entry(self, name: str) -> tuple[str, dict[str, str]]:
        """Return the entry that `name` belongs to, and the parameter that a family takes from it.

        Raises:
            UnknownNameError: nothing is registered by that name; the nearest name is suggested.
        """
        if name in self._targets:
            return name, {}
        meant = [*self._targets]
        for family in self._targets:
            prefix, _, word = family.removesuffix(">").partition("<")
            if word and name.startswith(prefix) and name != prefix:
                return family, {word: name.removeprefix(prefix)}
            if word and ":" in name:  # perhaps only the prefix is misspelt
                meant.append(prefix + name.partition(":")[2])
        raise UnknownNameError(
            f"unknown {self.kind} '{name}'{suggest(name, meant)} — "
            f"known: {', '.join(self._targets)}"
        )

    def load(self, name: str) -> Any:
        """Return the thing registered as `name`.

        Raises:
            UnknownNameError: nothing is registered by that name; the nearest name is suggested.
        """
        module, _, attribute = self._targets[self.entry(name)[0]].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def settings(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the keyword-only parameters of `name`: those a configuration may set."""
        parameters = inspect.signature(self.load(name)).parameters
        return {k: p for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def check(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `params` with values converted to the annotated types of `name`'s settings.

        Raises:
            UnknownNameError: nothing is registered by that name.
            ConfigError: a parameter is unknown, of the wrong type, or needed and not given.
        """
        settings = self.settings(name)
        hints = inspect.get_annotations(_initialiser(self.load(name)), eval_str=True)
        entry, named = self.entry(name)
        if entry.endswith(">") and not named:
            raise UnknownNameError(f"{self.kind} '{name}': put a name in place of <...>")
        checked = {}
        problems = [
            f"{self.kind} '{name}' needs {key}=<...>"
            for key, parameter in settings.items()
            if parameter.default is parameter.empty and key not in params
        ]
        for key, value in [*named.items(), *params.items()]:
            if key not in settings and (key, value) not in named.items():
                problems.append(
                    f"{self.kind} '{name}' has no setting '{key}'{suggest(key, settings)}"
                    f" — it has: {', '.join(settings) or 'none'}"
                )
                continue
            try:
                checked[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                problems.append(f"{self.kind} '{name}': {key}={value!r}: {reason}")
        if problems:
            raise ConfigError("; ".join(problems))
        return checked

    @cached_property
    def _targets(self) -> dict[str, str]:
        # Kept: looking through all installed packages takes longer than opening a slide.
        added = {entry.name: entry.value for entry in entry_points(group=self.group)}
        return self._table | {k: v for k, v in added.items() if k not in self._table}


def _initialiser(thing: Any) -> Any:
    return thing.__init__ if inspect.isclass(thing) else thing
