"""Bags of slides that were moved or renamed: found by fingerprint, renamed, never recomputed."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsi.bags.base import BagStore
from wsi.bags.convert import copy_bag
from wsi.bags.foreign.store import ForeignStore
from wsi.bags.sidecar import BagInfo, write_sidecar
from wsi.errors import BagCorruptError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish_bytes
from wsi.findings import few

_MARK = f"{TEMPORARY_PREFIX}relink-"


@dataclass(frozen=True)
class Move:
    """A bag under an old id whose slide has a new one."""

    old: str
    new: str


@dataclass(frozen=True)
class Relinking:
    """What is to be done so that bags have the ids of their slides.

    Attributes:
        moves: in an order in which no bag is overwritten.
        leftovers: bags that an interrupted move had already written under the new id.
        refused: slide ids that cannot be settled, with the reason.
        absent: bags whose slide is not among those given.
    """

    moves: tuple[Move, ...] = ()
    leftovers: tuple[Move, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def plan_relinking(store: BagStore, fingerprints: Mapping[str, str]) -> Relinking:
    """Return how the bags of `store` get the ids of their slides.

    A bag moves when its own id is no slide's any more, or a slide of other content has it, and
    exactly one slide without a bag has its fingerprint.

    Args:
        fingerprints: of each slide at hand, by id, as `wsi.files.sampled_fingerprint` gives them.
    """
    infos = {info.slide_id: info for info in store.infos()}
    settled = {s for s, info in infos.items() if fingerprints.get(s) == _of(info)}
    homeless = {s: info for s, info in infos.items() if s not in settled}
    bags, slides = _by_fingerprint(homeless), _without_bag(fingerprints, settled)
    moves, refused = _matched(bags, slides)
    done_before = [
        move
        for move in _begun(store)
        if move.old in homeless
        and move.new in settled
        and infos[move.old].key == infos[move.new].key
    ]
    ordered, stuck = _in_order(moves, set(infos))
    refused |= stuck
    going = {move.old for move in [*ordered, *done_before]} | set(stuck)
    absent = tuple(s for s in homeless if s not in fingerprints and s not in going)
    return Relinking(tuple(ordered), tuple(done_before), refused, absent)


def relink(store: BagStore, plan: Relinking) -> Iterator[Move]:
    """Yield the moves of a plan as they are made; a rerun finishes what was interrupted.

    Raises:
        BagCorruptError: a bag is damaged; it stays where it is.
        ResourceError: the disk is full; nothing is lost.
    """
    for move in plan.leftovers:
        store.remove(move.old)
        _marker(store, move.new).unlink(missing_ok=True)
        yield move
    for move in plan.moves:
        findings = store.verify(move.old)
        if findings:
            raise BagCorruptError(findings[0].message)
        info = store.info(move.old)
        # Two equal slides may well have a bag each: only the mark tells that one is left over.
        publish_bytes(_marker(store, move.new), json.dumps([move.old, move.new]).encode())
        if isinstance(store, ForeignStore):
            write_sidecar(store.root, replace(info, slide_id=move.new))
        else:
            copy_bag(store, store, info, slide_id=move.new)
        # Only now: a bag under both ids is one too many, under none it would be lost.
        store.remove(move.old)
        _marker(store, move.new).unlink()
        yield move


def _marker(store: BagStore, new: str) -> Path:
    return store.root / f"{_MARK}{file_name_of(new)}"


def _begun(store: BagStore) -> list[Move]:
    """Return the moves that were begun and not finished."""
    found = []
    for path in sorted(store.root.glob(f"{_MARK}*")):
        with contextlib.suppress(ValueError, TypeError):
            found.append(Move(*json.loads(path.read_bytes())))
    return found


def _of(info: BagInfo) -> str:
    return info.provenance.slide["fingerprint"]


def _by_fingerprint(infos: Mapping[str, BagInfo]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for slide_id, info in infos.items():
        found[_of(info)].append(slide_id)
    return found


def _without_bag(fingerprints: Mapping[str, str], settled: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for slide_id, fingerprint in fingerprints.items():
        if slide_id not in settled:
            found[fingerprint].append(slide_id)
    return found


def _matched(
    bags: Mapping[str, list[str]], slides: Mapping[str, list[str]]
) -> tuple[list[Move], dict[str, str]]:
    moves, refused = [], {}
    for fingerprint, olds in bags.items():
        news = slides.get(fingerprint, [])
        if len(olds) == 1 and len(news) == 1:
            moves.append(Move(olds[0], news[0]))
        elif news:
            reason = (
                f"{few(sorted(olds))} and the slides {few(sorted(news))} have the same content — "
                "rename the bag's slide, or give only the slide that is meant"
            )
            refused |= dict.fromkeys(news, reason)
    return moves, refused


def _in_order(moves: list[Move], taken: set[str]) -> tuple[list[Move], dict[str, str]]:
    """Return the moves so that each goes to a free id, and those that cannot."""
    ordered, waiting = [], list(moves)
    while free := [move for move in waiting if move.new not in taken]:
        ordered += free
        taken = taken - {move.old for move in free} | {move.new for move in free}
        waiting = [move for move in waiting if move not in free]
    stuck = {
        move.new: f"the bag of {move.old} belongs here, but a bag of another slide has this id — "
        "move or remove that one first"
        for move in waiting
    }
    return ordered, stuck
