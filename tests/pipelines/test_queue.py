"""What is taken next, while other processes work in the same folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.account import Account
from pipelines.cli import run_command
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.quarantine import Quarantine
from pipelines.queue import Queue
from pipelines.slidework import Target, Work
from pipelines.survey import survey_one
from wsi.claims import Claims
from wsi.encoders import load_encoder
from wsi.extract import make_recipe
from wsi.pixels import PixelPlan
from wsi.slides import find_slides

SETTINGS = ("tiling.mpp=1", "tiling.tile_px=64")


@dataclass
class Here:
    """This process: its queue, its account, and what it tells of itself."""

    queue: Queue
    account: Account
    claims: Claims
    slides: Path
    out: Path
    recipe: str

    def another_process_runs(self) -> int:
        where = ["--slides", str(self.slides), "--out", str(self.out), "--quiet"]
        return run_command(["preprocess", *SETTINGS, *where])


@pytest.fixture
def here(slide_folder: Path, tmp_path: Path):
    config, out = load_config(SETTINGS), tmp_path / "out"
    recipe = make_recipe(config, load_encoder(config.encoders[0]))
    target = Target(recipe, out / "bags" / recipe.name)
    work = Work(config, PixelPlan(), recipe.tiling, (target,), out, "bags")
    found = [survey_one(file, config.slides) for file in find_slides([slide_folder])]
    account = Account(found, Quarantine(out), Console(hushed=True))
    with Claims(out / "claims") as claims:
        queue = Queue(work, found, account, claims, None, retry=False, redo=False)
        yield Here(queue, account, claims, slide_folder, out, recipe.name)


def test_what_another_process_has_finished_is_counted_and_not_taken(here: Here) -> None:
    n = len(here.queue)
    assert n > 1
    assert here.another_process_runs() == 0
    assert here.queue.take() is None
    assert here.account.count("done") + here.account.count("empty") == n
    assert here.claims.held() == []


def test_what_another_process_works_on_is_left_to_it_until_it_lets_go(here: Here) -> None:
    n = len(here.queue)
    (first, *_) = here.queue.todo
    with Claims(here.out / "claims") as others:
        theirs = others.take(f"{here.recipe}/{first.file.slide_id}")
        assert theirs is not None
        mine = []
        while (job := here.queue.take()) is not None:
            mine.append(job.slide_id)
        assert len(mine) == n - 1
        assert first.file.slide_id not in mine
        assert here.queue.again() == 1
        theirs.release()
        assert here.queue.again() == 0
    job = here.queue.take()
    assert job is not None
    assert job.slide_id == first.file.slide_id
