"""Whether a process is the one that made a file, and whether it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from wsi.processes import current_process, has_ended, uptime

TICKS = os.sysconf("SC_CLK_TCK")


def start_of(pid: int) -> int:
    """Hundredths of a second from boot to the start of `pid`, as the kernel says it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round(int(fields[19]) / TICKS * 100)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_process_says_what_the_kernel_says_of_it() -> None:
    me = current_process()
    assert (me.pid, me.started) == (os.getpid(), start_of(os.getpid()))
    assert me.host == os.uname().nodename
    assert me.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_start_does_not_move_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_of(os.getpid())
    true_time, true_boot = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: true_time(self) + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: true_boot() + 3600)
    assert not has_ended(os.getpid(), started)


def test_a_running_and_a_suspended_process_have_not_ended(sleeper: subprocess.Popen) -> None:
    started = start_of(sleeper.pid)
    assert not has_ended(sleeper.pid, started)
    sleeper.send_signal(signal.SIGSTOP)
    assert not has_ended(sleeper.pid, started)


def test_a_killed_process_has_ended_before_its_parent_buries_it(
    sleeper: subprocess.Popen,
) -> None:
    started = start_of(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGKILL)
    while "Z" not in Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2]:
        time.sleep(0.01)
    assert has_ended(sleeper.pid, started)  # a zombie
    sleeper.wait()
    assert has_ended(sleeper.pid, started)  # no such process


def test_a_number_used_again_is_another_process(sleeper: subprocess.Popen) -> None:
    assert has_ended(sleeper.pid, start_of(sleeper.pid) - 1)
    assert has_ended(10**30, 1)


def test_a_process_that_cannot_be_looked_at_may_be_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hidden(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", hidden)
    assert not has_ended(os.getpid(), 1)


def test_only_processes_of_one_place_are_judged(sleeper: subprocess.Popen) -> None:
    gone = replace(current_process(), started=1)
    assert gone.is_gone()
    assert not current_process().is_gone()
    for other in ({"host": "x"}, {"boot_id": "x"}, {"namespace": "x"}):
        assert not replace(gone, **other).is_gone()


def test_a_forked_child_is_a_process_of_its_own() -> None:
    code = (
        "import os; from wsi.processes import current_process; parent = current_process();"
        "pid = os.fork();"
        "pid or os._exit(current_process().pid == parent.pid);"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_uptime_is_the_kernels() -> None:
    told = float(Path("/proc/uptime").read_text().split()[0])
    assert uptime() == pytest.approx(told, abs=1)
