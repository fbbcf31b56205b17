"""Bags that lie in a folder from earlier runs: made with the settings asked for now, or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.slides_csv import Surveyed
from pipelines.slidework import Work
from pipelines.tilecounts import refuse_bad
from wsi.bags import BagInfo, Provenance
from wsi.errors import ConfigError


def refuse_changed(work: Work, k: int, found: Sequence[Surveyed], max_bad_tiles: int) -> None:
    """Stop where done bags of a target were made with other settings, or lack more tiles.

    Raises:
        ConfigError: counts them, and says what differs and what to do.
    """
    infos = _infos(work, k, found)
    changed = _changed(work, k, found, infos)
    if changed:
        old = changed[0].provenance.recipe
        names = _differences(old, next(_recipes(work, k, found)).recipe)
        raise ConfigError(
            f"{len(changed)} bags in {work.targets[k].bags} were made with other settings "
            f"({names}) — add --redo to make them again, or give another --out"
        )
    refuse_bad(infos, max_bad_tiles)


def redo_changed(work: Work, k: int, found: Sequence[Surveyed], max_bad_tiles: int) -> None:
    """Remove the bags of a target that must be made again, those without scores among them."""
    store, infos = work.store(k), _infos(work, k, found)
    changed = {info.slide_id for info in _changed(work, k, found, infos)}
    for info in infos:
        lacking = info.status == "done" and not info.scores
        if info.slide_id in changed or lacking or len(info.bad_tiles) > max_bad_tiles:
            store.remove(info.slide_id)


def _infos(work: Work, k: int, found: Sequence[Surveyed]) -> list[BagInfo]:
    ids = {item.file.slide_id for item in found}
    return [info for info in work.store(k).infos() if info.slide_id in ids]


def _changed(
    work: Work, k: int, found: Sequence[Surveyed], infos: Sequence[BagInfo]
) -> list[BagInfo]:
    asked = next(_recipes(work, k, found), None)
    if asked is None:
        return []
    return [info for info in infos if info.recipe_key != asked.recipe_key]


def _recipes(work: Work, k: int, found: Sequence[Surveyed]) -> Iterator[Provenance]:
    """Yield what bags made now would be made from."""
    for item in found:
        if item.info is not None and item.info.mpp:
            yield work.targets[k].recipe.provenance(item.info)


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
