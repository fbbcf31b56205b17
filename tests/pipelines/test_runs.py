"""Runs of `wsi preprocess`: side by side, several encoders, limits, stages, signals, accounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pipelines.account
import pipelines.slidework
from pipelines.cli import run_command
from pipelines.logs import events
from wsi.bags import BagStore, open_store
from wsi.claims import Claims
from wsi.slides import open_slide
from wsi.slides.dress import write_slide

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
TEXTURE = "texture-v1_1um_64px"
RESNET = "timm-resnet18-random_1um_64px"
RANDOM = "{name: timm:resnet18, weights: random}"
SOUND = ("a", "b", "c", "site/d", "site/e")
STATES = dict.fromkeys(SOUND, "done") | {"glass": "empty", "zero": "open-failed"}


def preprocess(slides: Path, out: Path, *words: object) -> int:
    given = ["--slides", str(slides), "--out", str(out), *map(str, words)]
    return run_command(["preprocess", *SETTINGS, *given])


def bags(out: Path, recipe: str = TEXTURE) -> dict[str, bytes]:
    """Return the bag files of a run, as they are, by name."""
    return {p.name: p.read_bytes() for p in sorted((out / "bags" / recipe).glob("*.h5"))}


def store_of(out: Path, recipe: str = TEXTURE) -> BagStore:
    return open_store(out / "bags" / recipe)


def times(folder: Path) -> dict[str, int]:
    """Return when files were written; logs, tables and pages are written by every run."""
    own = ("slides.csv", "quarantine.csv", "report.html")
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name != "log" and p.name not in own
    }


def assert_tidy(out: Path) -> None:
    """Nothing unfinished, no claim."""
    assert not list((out / "claims").rglob("*"))
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]


def assert_adds_up(summary: dict[str, Any], **counts: int) -> None:
    parts = ("done", "empty", "quarantined", "in_progress_elsewhere")
    assert {name: summary[name] for name in parts} == dict.fromkeys(parts, 0) | counts
    assert sum(counts.values()) == summary["total"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """Five small slides with tissue, bare glass, and an empty file; never written to."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "site").mkdir()
    for seed, slide_id in enumerate(SOUND):
        edge = 512 + 128 * seed
        write_slide(folder / f"{slide_id}.tif", [picture((edge, edge), seed=seed)], mpp=0.5)
    write_slide(folder / "glass.tif", [np.full((256, 256, 3), 244, np.uint8)], mpp=0.5)
    (folder / "zero.svs").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def golden(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of one run by one reader; never written to."""
    out = tmp_path_factory.mktemp("golden") / "out"
    assert preprocess(archive, out) == 3
    assert len(bags(out)) == len(SOUND)
    return out


# -- side by side --------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_bags_are_the_same_to_the_byte_for_any_number_of_readers(
    archive: Path, golden: Path, tmp_path: Path, jobs: int
) -> None:
    assert preprocess(archive, tmp_path, "--jobs", jobs) == 3
    assert bags(tmp_path) == bags(golden)
    one, other = store_of(golden), store_of(tmp_path)
    assert one.ids() == other.ids()
    for slide_id in one.ids():
        assert one.info(slide_id).key == other.info(slide_id).key
        assert one.info(slide_id).counts == other.info(slide_id).counts
    for path in (golden / "tiles").iterdir():
        assert (tmp_path / "tiles" / path.name).read_bytes() == path.read_bytes()
    assert_tidy(tmp_path)


# -- several encoders ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bags of two encoders, made in one reading; never written to."""
    out = tmp_path_factory.mktemp("both") / "out"
    assert preprocess(archive, out, f"encoder=[texture-v1, {RANDOM}]") == 3
    return out


def test_several_encoders_in_one_reading_make_the_bags_of_each_alone(
    archive: Path, golden: Path, both: Path, tmp_path: Path
) -> None:
    assert preprocess(archive, tmp_path, f"encoder={RANDOM}") == 3
    assert bags(both) == bags(golden)
    assert bags(both, RESNET) == bags(tmp_path, RESNET)
    assert store_of(both, RESNET).info("a").dim == 512
    assert store_of(both, RESNET).info("glass").status == "empty"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, crew_of_one: object) -> Counter[str]:
    """How often each slide was opened to be read."""
    names: Counter[str] = Counter()

    def counted(path: Path, *words: Any, **more: Any):
        names[path.name] += 1
        return open_slide(path, *words, **more)

    monkeypatch.setattr(pipelines.slidework, "open_slide", counted)
    return names


def test_one_more_encoder_makes_its_own_bags_only_and_all_are_read_once(
    archive: Path, both: Path, opened: Counter[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(archive / "site", out) == 0
    assert opened == {"d.tif": 1, "e.tif": 1}
    before, texture = times(out), bags(out)
    opened.clear()
    assert preprocess(archive / "site", out, f"encoder=[texture-v1, {RANDOM}]") == 0
    assert opened == {"d.tif": 1, "e.tif": 1}
    after = times(out)
    assert {n: after[n] for n in before if "/texture" in n} == {
        n: t for n, t in before.items() if "/texture" in n
    }
    assert bags(out) == texture
    made, known = store_of(out, RESNET), store_of(both, RESNET)
    for name in "de":
        np.testing.assert_array_equal(made.read(name).features, known.read(f"site/{name}").features)
    opened.clear()
    assert preprocess(archive / "site", out, f"encoder=[texture-v1, {RANDOM}]") == 0
    assert opened == {}
    assert times(out) == after


# -- the account ---------------------------------------------------------------------------------


def test_every_slide_is_accounted_for_by_every_run(
    archive: Path, tmp_path: Path, said_json: Callable[..., Any]
) -> None:
    words = ["preprocess", *SETTINGS, "--slides", archive, "--out", tmp_path]
    whole = {"done": 5, "empty": 1, "quarantined": 1}
    assert_adds_up(said_json([*words, "--until", "tissue"], 3), **whole)
    tiles = said_json([*words, "--until", "tiles"], 3)
    assert_adds_up(tiles, **whole)
    with Claims(tmp_path / "claims") as claims:
        held = [claims.take(f"{TEXTURE}/{slide_id}") for slide_id in ("b", "site/d")]
        assert all(held)
        some = said_json(words, 3)
        assert_adds_up(some, done=3, empty=1, quarantined=1, in_progress_elsewhere=2)
        assert sorted(claims.held()) == [f"{TEXTURE}/b", f"{TEXTURE}/site/d"]
    bags = said_json(words, 3)
    assert_adds_up(bags, **whole)
    assert bags["tiles"] == tiles["tiles"]
    again = said_json(words, 3)
    assert_adds_up(again, **whole)
    assert again["tiles"] == tiles["tiles"]
    assert_adds_up(said_json([*words, "--retry-quarantined"], 3), **whole)
    part = said_json([*words[:-3], archive / "site", "--out", tmp_path], 0)
    assert_adds_up(part, done=2)


def test_another_process_that_fails_a_slide_is_not_overridden(
    archive: Path, tmp_path: Path, said_json: Callable[..., Any]
) -> None:
    words = ["preprocess", *SETTINGS, "--slides", archive, "--out", tmp_path]
    with Claims(tmp_path / "claims") as claims:
        assert claims.take(f"{TEXTURE}/zero")
        assert_adds_up(said_json(words), done=5, empty=1, in_progress_elsewhere=1)
        assert not (tmp_path / "quarantine").exists()


def test_allowed_quarantined_slides_are_a_success(archive: Path, tmp_path: Path) -> None:
    for allowed, code in [("0", 3), ("1", 0), ("15%", 0), ("14%", 3), ("100%", 0)]:
        words = ("--until", "tissue", "--allow-quarantined", allowed)
        assert preprocess(archive, tmp_path, *words) == code, allowed
    for wrong in ("few", "-", "5 %x"):
        words = ("--until", "tissue", f"--allow-quarantined={wrong}")
        assert preprocess(archive, tmp_path, *words) == 2


@pytest.mark.parametrize("until", ["tissue", "tiles", "bags"])
def test_a_rerun_writes_nothing(archive: Path, tmp_path: Path, until: str) -> None:
    assert preprocess(archive, tmp_path, "--until", until) == 3
    before = times(tmp_path)
    assert len(before) > 10
    assert preprocess(archive, tmp_path, "--until", until) == 3
    assert times(tmp_path) == before


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    ["limits.max_files=2", pytest.param("limits.max_gb=0.000003", marks=pytest.mark.slow)],
)
def test_a_run_that_has_written_enough_stops_and_is_gone_on_with(
    archive: Path, golden: Path, tmp_path: Path, refused: Callable[..., str], limit: str
) -> None:
    words = ["preprocess", *SETTINGS, limit, "--slides", archive, "--out", tmp_path]
    told = refused(words, 4)
    assert f"as {limit.partition('=')[0]}=" in told
    assert "run again to go on" in told
    assert 0 < len(bags(tmp_path)) <= 2
    assert_tidy(tmp_path)
    codes = [run_command([str(word) for word in words]) for _ in range(2)]
    assert codes[0] == 4
    while codes[-1] == 4:
        codes.append(run_command([str(word) for word in words]))
        assert len(codes) < 9
    assert codes[-1] == 3  # as the run without a limit
    assert bags(tmp_path) == bags(golden)


def test_a_run_that_just_fits_its_limit_is_complete(archive: Path, tmp_path: Path) -> None:
    assert preprocess(archive / "site", tmp_path, "limits.max_files=2") == 0
    assert len(bags(tmp_path)) == 2
    assert (tmp_path / "report.html").is_file()


# -- a stage -------------------------------------------------------------------------------------


def test_slides_read_from_a_stage_give_the_same_and_leave_nothing_there(
    archive: Path, golden: Path, tmp_path: Path
) -> None:
    out, stage = tmp_path / "out", tmp_path / "canary-stage"
    assert preprocess(archive, out, "--stage", stage, "--stage-gb", 0.01, "--jobs", 2) == 3
    assert bags(out) == bags(golden)
    assert list(stage.iterdir()) == []
    for path in out.rglob("*"):
        if path.is_file():
            assert b"canary-stage" not in path.read_bytes(), path
    before = times(out / "bags")
    assert preprocess(archive, out) == 3  # the bags are of the slides, not of their copies
    assert times(out / "bags") == before


def test_slides_too_large_for_the_stage_are_read_in_place(
    archive: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, stage = tmp_path / "out", tmp_path / "stage"
    assert preprocess(archive, out, "--stage", stage, "--stage-gb", 0.00001) == 3
    assert "slides read in place, not from the stage" in capsys.readouterr().err
    assert bags(out) == bags(golden)
    assert list(stage.iterdir()) == []


# -- why -----------------------------------------------------------------------------------------


def why(slide_id: str, out: Path, *words: str) -> list[str]:
    return ["why", slide_id, "--out", str(out), *words]


def test_why_tells_of_a_slide_that_is_done(
    golden: Path, capsys: pytest.CaptureFixture[str], said_json: Callable[..., Any]
) -> None:
    assert run_command(why("d", golden)) == 0  # the bare name, as it is unique
    captured = capsys.readouterr()
    told = captured.out + captured.err
    info = store_of(golden).info("site/d")
    assert f"done: {info.n} tiles x {info.dim} float16" in told
    assert "0.5 um/px (openslide)" in told
    found = said_json(why("site/d", golden))
    assert (found["slide_id"], found["state"], found["quarantine"]) == ("site/d", "done", None)
    assert found["bags"][TEXTURE]["tiles"] == info.n
    assert found["bags"][TEXTURE]["sha256"] == info.sha256
    (event,) = found["history"]
    assert (event["state"], event["slide_id"]) == ("done", "site/d")
    assert event["seconds"]["encode"] >= 0


def test_why_tells_of_an_empty_slide_and_of_a_quarantined_one(
    golden: Path, said_json: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    empty = said_json(why("glass", golden))
    assert empty["bags"][TEXTURE]["status"] == "empty"
    assert empty["bags"][TEXTURE]["reason"] == "no-tissue"
    bad = said_json(why("zero", golden), 3)
    assert (bad["state"], bad["bags"]) == ("quarantined", {})
    assert (bad["quarantine"]["reason"], bad["quarantine"]["attempts"]) == ("open-failed", 1)
    assert run_command(why("zero", golden)) == 3
    assert "zero: open-failed" in capsys.readouterr().err


def test_why_does_not_know_every_slide(golden: Path, refused: Callable[..., str]) -> None:
    told = refused(why("glas", golden), 2)
    assert "no slide glas" in told
    assert "'glass'" in told
    refused(why("a", golden / "bags"), 2)


def test_why_names_who_works_on_a_slide(
    archive: Path, tmp_path: Path, said_json: Callable[..., Any]
) -> None:
    assert preprocess(archive / "a.tif", tmp_path, "--until", "tiles") == 0
    with Claims(tmp_path / "claims") as claims:
        assert claims.take(f"{TEXTURE}/a")
        found = said_json(why("a", tmp_path), 3)
    assert found["state"] == "waiting"
    assert f"pid {os.getpid()}" in found["in_progress"][0]


def test_logs_are_read_whatever_was_cut_off(golden: Path, tmp_path: Path) -> None:
    (log,) = (golden / "log").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(line["time"] for line in lines)
    told = {e["slide_id"]: e["state"] for e in events(golden) if e.get("event") == "slide"}
    assert told == {k: v for k, v in STATES.items() if k != "zero"}  # known by the survey
    (tmp_path / "log").mkdir()
    whole = log.read_bytes()
    for k, end in enumerate(range(0, len(whole), 97)):
        (tmp_path / "log" / f"{k}.jsonl").write_bytes(whole[:end] + b"\n\xff[1]\n3\n")
    n = sum(whole[:end].count(b"\n") for end in range(0, len(whole), 97))
    assert n <= len(list(events(tmp_path))) <= n + len(whole) // 97 + 1


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_at_a_safe_place(
    archive: Path,
    golden: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    add = pipelines.account.Account.add

    def and_be_asked(self: Any, *words: Any, **more: Any) -> None:
        add(self, *words, **more)
        if self.count("done") == 2:
            signal.raise_signal(number)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(pipelines.account.Account, "add", and_be_asked)
    words = ["preprocess", *SETTINGS, "--slides", archive, "--out", tmp_path, "--jobs", 2]
    told = refused(words, code)
    assert told.startswith("error[INTERRUPTED]: stopped — run the same command again")
    assert 2 <= len(bags(tmp_path)) < len(SOUND)
    assert_tidy(tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    done = times(tmp_path / "bags")
    assert preprocess(archive, tmp_path) == 3
    assert bags(tmp_path) == bags(golden)
    after = times(tmp_path / "bags")
    assert {name: after[name] for name in done} == done


def start(slides: Path, out: Path, *words: object) -> subprocess.Popen[str]:
    """Start the program in a group of its own, as a terminal does."""
    given = ["preprocess", *SETTINGS, "--slides", slides, "--out", out, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *map(str, given)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.fixture(scope="module")
def many(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of forty slides, which are five files."""
    table = tmp_path_factory.mktemp("many") / "many.csv"
    rows = [f"{k},{archive / SOUND[k % 5]}.tif" for k in range(40)]
    table.write_text("\n".join(["slide_id,path", *rows, ""]))
    return table


@pytest.mark.slow  # every run imports torch anew
@pytest.mark.parametrize(
    ("number", "group", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143), (signal.SIGINT, True, 130)],
)
def test_the_program_ends_on_a_signal_and_leaves_nothing_behind(
    many: Path, golden: Path, tmp_path: Path, number: int, group: bool, code: int
) -> None:
    out, stage = tmp_path / "out", tmp_path / "stage"
    for wanted in (1, 12):
        words = ("--jobs", 2, "--stage", stage, "--stage-gb", 0.01)
        with start(many, out, *words) as process:
            while len(bags(out)) < wanted:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.005)
            family = psutil.Process(process.pid).children(recursive=True)
            before = time.monotonic()
            (os.killpg if group else os.kill)(process.pid, number)
            assert process.wait(30) == code
            assert time.monotonic() - before < 10
            assert process.stderr is not None
            said = process.stderr.read()
        assert said.count("error[INTERRUPTED]") == 1
        assert "Traceback" not in said
        assert family
        assert psutil.wait_procs(family, 5)[1] == []
        assert_tidy(out)
        assert list(stage.iterdir()) == []
        assert wanted <= len(bags(out)) < 40
    assert preprocess(many, out) == 0
    found, known = store_of(out), store_of(golden)
    for k in range(40):
        one, other = found.read(str(k)), known.read(SOUND[k % 5])
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.xy0, other.xy0)
