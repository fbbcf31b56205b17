"""`wsi encoders`: whether weights are here or can be had, and fetching them ahead of time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.console import Console, counted
from wsi.encoders import encoder_info
from wsi.encoders.available import Availability, availability, preflight, pull
from wsi.errors import EncoderError
from wsi.files import sha256_file
from wsi.specs import Component


def ready_encoder(component: Component, console: Console, embedding: bool = True) -> None:
    """Refuse an encoder that is misspelt or, where embedding is asked for, not to be had.

    Says aloud what must not go unnoticed, as random weights.

    Raises:
        EncoderError: its weights are neither here nor to be fetched, found out within seconds.
        UnknownNameError, ConfigError: as for `wsi.encoders.load_encoder`.
    """
    if embedding:
        preflight(component)
    if warning := encoder_info(component).warning:
        console.warn(warning)


def check(names: Sequence[str], console: Console) -> int:
    """Print what is known of each encoder's weights; return 1 when some are not to be had."""
    found = [availability(Component(name=name)) for name in names]
    rows = [_facts(one) for one in found]
    console.table(list(rows[0]), (list(map(_word, row.values())) for row in rows), "encoders")
    problems = [one.problem for one in found if one.problem]
    for problem in problems:
        console.warn(problem)
    console.result([row | {"problem": one.problem} for row, one in zip(rows, found, strict=True)])
    return 1 if problems else 0


def fetch(names: Sequence[str], console: Console) -> int:
    """Fetch the weights of each encoder into the cache; return 1 when some are not to be had."""
    if console.json or console.quiet or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    rows, failed = [], 0
    for name in names:
        row = {"name": name, "path": None, "sha256": None, "problem": ""}
        try:
            console.detail(f"{name}: fetching")
            path = pull(Component(name=name))
            row |= {"path": str(path) if path else None, "sha256": _digest(path)}
            console.say(f"{name}: {path}, sha256 {row['sha256']}" if path else f"{name}: built in")
        except EncoderError as error:
            row["problem"] = str(error)
            failed += 1
            console.warn(str(error))
        rows.append(row)
    console.result(rows)
    console.say(f"{counted(len(names) - failed, 'encoder')} ready, {failed} not")
    return 1 if failed else 0


def _facts(found: Availability) -> dict[str, object]:
    return {
        "name": found.name,
        "cached": found.cached,
        "reachable": found.reachable,
        "gated": found.gated,
        "licence": found.licence,
        "sha256": _digest(found.path),
        "page": found.page,
    }


def _digest(path: Path | None) -> str | None:
    return sha256_file(path) if path else None


def _word(value: object) -> str:
    words = {True: "yes", False: "no", None: "-"}
    return words[value] if isinstance(value, bool) or value is None else str(value)
