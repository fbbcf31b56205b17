"""Disks that are full, closed to writing, or rot."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import run_command
from tests.faults.conftest import SETTINGS, Start, bags, leftovers

Slides = Callable[[int], Path]


def own_mounts() -> tuple[str, ...]:
    """Return the words that run a command in a namespace where it may mount; skip without."""
    command = ("unshare", "--user", "--map-root-user", "--mount")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("namespaces may not be made here")
    return command


def on_tmpfs(out: Path, size: str, then: str) -> tuple[str, ...]:
    """Return the words that run a command on a small disk at `out`, then a line of shell.

    The command's exit code is kept; the disk goes with the last process that sees it.
    """
    script = 'mount -t tmpfs -o "size=$2" tmpfs "$1" || exit 99; out=$1; shift 2; "$@"; code=$?; '
    return (*own_mounts(), "sh", "-c", f"{script}{then}; exit $code", "sh", str(out), size)


def full(start: Start, slides: Path, golden: dict[str, str], folder: Path, kb: int) -> str:
    """Fill a disk under a run, give it room, run again; return what the first run said."""
    out, seen, mended = folder / "out", folder / "seen", folder / "mended"
    for each in (out, seen, mended):
        each.mkdir(parents=True)
    room = 'mount -o remount,size=64m "$out"; "$@" >/dev/null 2>&1 || exit 98; '
    then = f'cp -a "$out/." "{seen}"; {room} cp -a "$out/." "{mended}"'
    run = start(slides, out, before=on_tmpfs(out, f"{kb}k", then))
    assert run.wait(240) == 4, run.output
    assert "Traceback" not in run.output
    assert leftovers(seen) == []
    some = bags(seen)
    assert {name: golden[name] for name in some} == some
    assert bags(mended) == golden
    assert leftovers(mended) == []
    line = next(line for line in run.output.splitlines() if line.startswith("error["))
    print(f"{kb} kB: {len(some)} of {len(golden)} bags, {line}")
    return line


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_done_and_a_rerun_ends_the_rest(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    slides = small_slides(20)
    calm = start(slides, tmp_path / "calm")
    assert calm.wait() == 0
    golden = bags(tmp_path / "calm")
    for kb in (64, 300, 1800, 2600):
        line = full(start, slides, golden, tmp_path / f"{kb}", kb)
        assert line.startswith("error[NOSPACE]: ")
        assert " — " in line


def test_a_folder_closed_to_writing_is_told_before_any_slide_is_read(
    start: Start, small_slides: Slides, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    closed = 'mount -o remount,ro "$1"; out=$1; shift 2; exec "$@"'
    script = f'mount -t tmpfs -o "size=$2" tmpfs "$1" || exit 99; {closed}'
    before = (*own_mounts(), "sh", "-c", script, "sh", str(out), "1m")
    begun = time.monotonic()
    run = start(small_slides(2), out, before=before, PYTHONPROFILEIMPORTTIME="1")
    children = False
    while run.process.poll() is None:
        # The shell that mounts has children of its own: only Python's read slides.
        children = children or any("python" in child.name() for child in run.children())
        time.sleep(0.02)
    print(f"told after {time.monotonic() - begun:.1f} s")
    assert run.process.returncode == 4, run.output
    lines = run.output.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert len(said) == 1
    assert said[0].startswith(f"error[READONLY]: {out} may not be written to")
    assert not children
    # What takes most of the time on any machine; seconds would measure how busy this one is.
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "pipelines.preprocess" in imported
    assert "torch" not in imported


def test_a_flipped_bit_in_a_bag_is_named(
    small_slides: Slides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    places = ["--slides", str(small_slides(2)), "--out", str(out)]
    assert run_command(["preprocess", *places, *SETTINGS]) == 0
    (folder,) = (out / "bags").iterdir()
    assert run_command(["bags", "verify", str(folder)]) == 0
    capsys.readouterr()
    bag = folder / "s001.h5"
    data = bytearray(bag.read_bytes())
    data[-100] ^= 4
    bag.write_bytes(data)
    assert run_command(["bags", "verify", str(folder)]) == 5
    said = "".join(capsys.readouterr())
    assert "s001" in said
    assert "s000" not in said
