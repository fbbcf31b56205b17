"""Nothing stays on the disk, however the processes end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from wsi.staging import Stage

MB = 1_000_000
PROGRAM = """
import os, sys, time
from pathlib import Path
from wsi.staging import Stage
slides = sorted(Path(sys.argv[1]).iterdir())
stage = Stage(Path(sys.argv[2]), 10**9)
stage.want(slides)
stage.get(slides[0])
print("ready", flush=True)
{then}
"""

Put = Callable[[Path, int], Path]
Wait = Callable[..., None]
Copier = Callable[[int, Path], psutil.Process]
IsDead = Callable[[psutil.Process], bool]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stage"


@pytest.fixture
def start(tmp_path: Path, folder: Path, put_slide: Put) -> Iterator[Start]:
    """A function that starts a process with a stage; a large slide is in the making."""
    started: list[subprocess.Popen[str]] = []
    put_slide(tmp_path / "in" / "a.svs", MB)
    put_slide(tmp_path / "in" / "b.svs", 200 * MB)

    def go(then: str = "time.sleep(600)") -> subprocess.Popen[str]:
        words = [str(tmp_path / "in"), str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(then=then), *words],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def leftovers(start: Start, folder: Path, wait_until: Wait, copier_of: Copier) -> list[str]:
    """What a parent and its copier leave that are killed together."""
    process = start()
    copier = copier_of(process.pid, folder)
    copier.suspend()  # no time to clean up
    process.kill()
    copier.kill()
    process.wait()
    left = left_in(folder)
    assert len(left) == 2
    wait_until(lambda: is_free(folder / left[1]))
    return left


def is_free(lock: Path) -> bool:
    """Return whether a lock is held by no process, not even by one whose threads are ending."""
    return subprocess.run(["flock", "--nonblock", str(lock), "true"]).returncode == 0


def test_closing_leaves_nothing(folder: Path, tmp_path: Path, put_slide: Put) -> None:
    slides = [put_slide(tmp_path / f"{n}.svs", 50 * MB) for n in range(3)]
    before = set(psutil.Process().children())  # readers of other tests
    with Stage(folder, 10**9) as stage:
        stage.want(slides)
        stage.get(slides[0])
        (copier,) = set(psutil.Process().children()) - before
        pid = copier.pid
    assert left_in(folder) == []
    assert not psutil.pid_exists(pid)  # fetched by its parent
    assert stage.get(slides[0]) == slides[0]
    stage.close()


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "os._exit(1)"])
def test_a_program_that_forgets_to_close_leaves_nothing(
    start: Start, folder: Path, wait_until: Wait, then: str
) -> None:
    start(then).wait(10)
    wait_until(lambda: left_in(folder) == [])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_killed_leaves_nothing(
    start: Start,
    folder: Path,
    wait_until: Wait,
    copier_of: Copier,
    is_dead: IsDead,
    how: signal.Signals,
) -> None:
    process = start()
    copier = copier_of(process.pid, folder)
    assert len(left_in(folder)) == 2
    process.send_signal(how)
    process.wait()
    wait_until(lambda: left_in(folder) == [] and is_dead(copier))


def test_the_death_of_the_parent_is_seen_where_another_process_holds_its_socket(
    start: Start, folder: Path, wait_until: Wait
) -> None:
    process = start("os.fork() or time.sleep(8) or os._exit(0)\ntime.sleep(600)")
    process.kill()
    process.wait()
    wait_until(lambda: left_in(folder) == [])


def test_signals_to_all_processes_of_a_job_do_not_stop_the_copier(
    folder: Path, tmp_path: Path, put_slide: Put, copier_of: Copier
) -> None:
    first, second = (put_slide(tmp_path / f"{n}.svs", MB) for n in "ab")
    with Stage(folder, 10 * MB) as stage:
        stage.get(first)
        copier = copier_of(os.getpid(), folder)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            copier.send_signal(one)
        assert stage.get(second) != second
        assert copier_of(os.getpid(), folder) == copier


def test_what_a_killed_copier_and_its_parent_left_is_collected(
    leftovers: list[str], folder: Path
) -> None:
    with Stage(folder, 10 * MB):
        assert len(left_in(folder)) == 2
        assert set(left_in(folder)).isdisjoint(leftovers)
    assert left_in(folder) == []


def test_what_living_processes_use_is_not_collected(start: Start, folder: Path) -> None:
    start()
    used = left_in(folder)
    with Stage(folder, 10 * MB):
        assert set(used) < set(left_in(folder))
    assert left_in(folder) == used


def test_a_folder_whose_copier_alone_died_is_not_collected(
    start: Start, folder: Path, wait_until: Wait, copier_of: Copier, is_dead: IsDead
) -> None:
    process = start()
    copier = copier_of(process.pid, folder)
    process.send_signal(signal.SIGSTOP)  # it starts no other
    copier.kill()
    wait_until(lambda: is_dead(copier))
    used = left_in(folder)
    with Stage(folder, 10 * MB):
        pass
    assert left_in(folder) == used


def test_folders_of_other_hosts_are_collected_after_a_week(
    leftovers: list[str], folder: Path
) -> None:
    for path in folder.iterdir():
        path.rename(folder / path.name.replace(os.uname().nodename, "another-host"))
    left = left_in(folder)
    assert set(left).isdisjoint(leftovers)
    with Stage(folder, 10 * MB):
        pass
    assert left_in(folder) == left
    [lock] = folder.glob("*.lock")
    week_ago = time.time() - 7 * 24 * 3600 - 60
    os.utime(lock, (week_ago, week_ago))
    with Stage(folder, 10 * MB):
        pass
    assert left_in(folder) == []


def test_what_is_not_ours_is_never_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    folder.mkdir()
    name = f".wsi-stage-{os.uname().nodename}-pid1-00000000"
    (folder / name).symlink_to(tmp_path / "precious")
    (folder / f"{name}.lock").write_text("")
    (folder / "slides").mkdir()
    with Stage(folder, MB):
        pass
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert (folder / "slides").is_dir()
