"""Small archives, runs of the program as processes of their own, and what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from wsi.slides.dress import pyramid, write_slide

ROOT = Path(__file__).parents[2]
SETTINGS = ("tiling.tile_px=128", "tiling.mpp=0.5")
_MARK = "WSI_TEST_RUN"  # in the environment of a run and of all that it starts
_GRACE_S = 5.0  # a killed child is gone within moments, on a busy machine a little later


def small_slide(path: Path, seed: int = 0, **dress: Any) -> Path:
    """Write a slide of 512x512 px at 0.5 um/px: a disc of its own mottle, about a dozen tiles."""
    rng = np.random.default_rng(seed)
    mottle = cv2.GaussianBlur(rng.standard_normal((512, 512), np.float32), (0, 0), 3)
    y, x = np.mgrid[0:512, 0:512] - 256
    tissue = np.array([190, 110, 165]) + mottle[..., None] * np.array([80, 130, 70])
    picture = np.where((np.hypot(x, y) < 190)[..., None], tissue, 245)
    level0 = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    write_slide(path, pyramid(level0, 2, 4.0), **{"mpp": 0.5, "tile": 128} | dress)
    return path


@pytest.fixture(scope="session")
def small_slides(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives a folder of n small slides, no two of them alike."""

    def folder(n: int) -> Path:
        made = tmp_path_factory.mktemp(f"slides{n}-")
        for k in range(n):
            small_slide(made / f"s{k:03}.tif", k)
        return made

    return folder


@dataclass
class Run:
    """`wsi preprocess` as a process in a session of its own."""

    process: subprocess.Popen[str]
    out: Path
    mark: str
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout_s: float = 120) -> int:
        """Return the exit code; a run that does not end is a failure."""
        return self.process.wait(timeout_s)

    @property
    def output(self) -> str:
        return self.said.read_text()

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def until_working(self, timeout_s: float = 60) -> None:
        """Wait until its first slide has ended, or it has."""
        self._until(lambda: any(e.get("event") == "slide" for e in self.events()), timeout_s)

    def until_started(self, timeout_s: float = 60) -> None:
        """Wait until it reads slides, or has ended."""
        self._until(lambda: bool(self.children()), timeout_s)

    def _until(self, happens: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while self.process.poll() is None and not happens():
            assert time.monotonic() < end, "the run did not come to its slides"
            time.sleep(0.02)

    def events(self) -> list[dict[str, Any]]:
        """Return what this process has logged so far; a line that was cut off is left out."""
        return logged(self.out, f"*-{self.pid}-*.jsonl")

    def left(self) -> list[str]:
        """Return the processes of this run that still live, once it had time to end them."""
        end = time.monotonic() + _GRACE_S
        while (found := _marked(self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return found


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            dead = process.status() == psutil.STATUS_ZOMBIE
            if not dead and process.environ().get(_MARK) == mark:
                found.append(f"{process.pid} {process.cmdline()}")
    return found


def logged(out: Path, pattern: str = "*.jsonl") -> list[dict[str, Any]]:
    """Return the lines of logs, read without the toolkit; one that was cut off is left out."""
    found = []
    for path in sorted((out / "log").glob(pattern)):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start runs; what is left of them at the end is killed."""
    with ExitStack() as stack:

        def begin(
            slides: Path, out: Path, *words: str, before: tuple[str, ...] = (), **env: str
        ) -> Run:
            mark = uuid.uuid4().hex
            run = [*before, sys.executable, "-m", "pipelines.cli", "preprocess"]
            places = ["--slides", str(slides), "--out", str(out)]
            said = tmp_path / f"{mark}.txt"
            with said.open("w") as output:
                process = subprocess.Popen(
                    [*run, *places, *SETTINGS, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    text=True,
                    start_new_session=True,
                    env=os.environ | {"PYTHONPATH": str(ROOT), _MARK: mark} | env,
                )
            stack.callback(process.wait)
            stack.callback(_kill_group, process.pid)
            return Run(process, out, mark, said)

        yield begin


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def bags(out: Path) -> dict[str, str]:
    """Return sha256 of every bag, by its file's name; each must be what its sidecar says."""
    found = {}
    for sidecar in sorted((out / "bags").glob("*/*.json")):
        told = json.loads(sidecar.read_text())
        if told["status"] == "done":
            content = sidecar.with_name(told["file"]).read_bytes()
            found[sidecar.stem] = hashlib.sha256(content).hexdigest()
            assert found[sidecar.stem] == told["sha256"], sidecar.name
    return found


def leftovers(out: Path) -> list[str]:
    """Return unfinished files and claims, and bags without a sidecar."""
    files = [path for path in out.rglob("*") if path.is_file()]
    unfinished = [path for path in files if path.name.startswith(".")]
    claims = list((out / "claims").glob("*"))
    alone = [p for p in (out / "bags").rglob("*.h5") if not p.with_suffix(".json").exists()]
    return sorted(str(path.relative_to(out)) for path in [*unfinished, *claims, *alone])


def states(out: Path) -> dict[str, str]:
    """Return what became of each slide, as files say: done, empty, or why it is quarantined."""
    found = {}
    for path in sorted((out / "quarantine").glob("*.json")):
        told = json.loads(path.read_text())
        found[told["slide_id"]] = told["reason"]
    for path in sorted((out / "bags").glob("*/*.json")):
        told = json.loads(path.read_text())
        assert told["slide_id"] not in found, f"{told['slide_id']} has two states"
        found[told["slide_id"]] = told["status"]
    return found
