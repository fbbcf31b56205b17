"""`wsi bags relink`: bags follow slides that were moved or renamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.at_hand import fingerprints
from pipelines.console import Console, counted
from wsi.bags import open_store
from wsi.bags.relink import plan_relinking, relink
from wsi.findings import few


def relink_bags(folder: Path, slides: Sequence[Path], dry_run: bool, console: Console) -> int:
    """Rename bags to the ids their slides have now; 3 when some could not be settled."""
    store = open_store(folder)
    plan = plan_relinking(store, fingerprints(slides, console))
    moves = [*plan.leftovers, *plan.moves]
    if moves:
        console.table(["bag", "slide now"], ([m.old, m.new] for m in moves), str(store.root))
    for slide_id, reason in plan.refused.items():
        console.warn(f"{slide_id}: {reason}")
    if plan.absent:
        console.say(f"{counted(len(plan.absent), 'bag')} without slide here: {few(plan.absent)}")
    if not dry_run:
        with console.progress("renaming", len(moves)) as track:
            for move in relink(store, plan):
                track.advance(1, move.new)
    console.result(
        {
            "moved": [asdict(move) for move in moves],
            "refused": dict(plan.refused),
            "absent": list(plan.absent),
            "dry_run": dry_run,
        }
    )
    verb = "would be renamed" if dry_run else "renamed"
    console.say(f"{counted(len(moves), 'bag')} {verb}, nothing was computed, in {store.root}")
    return 3 if plan.refused else 0
