"""Slides of random bytes, and waiting for what other processes do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Wait = Callable[..., None]


def put_slide(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    os.utime(path, ns=(10**18, 10**18 + 123456789))
    return path


def wait_until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def copiers_of(pid: int, folder: Path) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
        return [p for p in children if f"{folder}/.wsi-stage-" in " ".join(p.cmdline())]
    return []


def copier_of(pid: int, folder: Path) -> psutil.Process:
    """Return the process that copies into a folder for a process; it may just be being replaced."""
    wait_until(lambda: len(copiers_of(pid, folder)) == 1)
    [copier] = copiers_of(pid, folder)
    return copier


def is_dead(process: psutil.Process) -> bool:
    """Return whether a process is no more, or waits for its exit code to be fetched."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(name="put_slide")
def _put_slide() -> Callable[[Path, int], Path]:
    return put_slide


@pytest.fixture(name="wait_until")
def _wait_until() -> Wait:
    return wait_until


@pytest.fixture(name="copier_of")
def _copier_of() -> Callable[[int, Path], psutil.Process]:
    return copier_of


@pytest.fixture(name="is_dead")
def _is_dead() -> Callable[[psutil.Process], bool]:
    return is_dead
