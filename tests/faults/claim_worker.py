"""A process that claims, for test_claims.py of this folder: run as a script, told what by words.

    claim_worker.py work FOLDER LOG DONE N      do N things once each, together with others
    claim_worker.py race FOLDER LOG START N     take N stale claims as soon as each one's time comes
    claim_worker.py hold FOLDER TTL NAME...     take, then answer to words on stdin
    claim_worker.py sweep FOLDER                be killed at every step of taking and releasing

Every entry of the log is one appended line, so that the kernel puts all processes' lines in order.
WITHOUT_LINKS in the environment stands for a file system that has no hard links.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from pathlib import Path

from wsi.claims import Claims

if "WITHOUT_LINKS" in os.environ:

    def _refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    Path.hardlink_to = _refuse  # pyright: ignore[reportAttributeAccessIssue]


class Log:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, event: str, name: str) -> None:
        os.write(self._file, f"{event} {os.getpid()} {name}\n".encode())


def work(folder: str, log_path: str, done: str, n: str) -> None:
    log = Log(log_path)
    todo = [f"site/{k}" for k in range(int(n))]
    with Claims(Path(folder)) as claims:
        while todo:
            for name in random.sample(todo, len(todo)):
                if _is_done(done, name):
                    todo.remove(name)
                    continue
                claim = claims.take(name)
                if claim is None:
                    continue
                if not _is_done(done, name):
                    log.add("enter", name)
                    time.sleep(random.uniform(0, 0.003))
                    _mark(done, name).touch()
                    log.add("leave", name)
                claim.release()


def _mark(done: str, name: str) -> Path:
    return Path(done) / name.replace("/", "-")


def _is_done(done: str, name: str) -> bool:
    return _mark(done, name).exists()


def race(folder: str, log_path: str, start: str, n: str) -> None:
    log = Log(log_path)
    with Claims(Path(folder)) as claims:
        for k in range(int(n)):
            while time.monotonic() < float(start) + 0.01 * k:
                pass
            claim = claims.take(f"s{k}")
            if claim is not None:
                log.add("won", claim.name)
        print("raced", flush=True)
        sys.stdin.readline()  # what was won is kept until all have tried


def hold(folder: str, ttl: str, *names: str) -> None:
    with Claims(Path(folder), ttl_s=float(ttl), heartbeat_s=float(ttl) / 10) as claims:
        taken = [claims.take(name) for name in names]
        print("held" if all(taken) else "none", flush=True)
        for word in sys.stdin:
            if word == "live?\n":
                print([claim is not None and claim.is_live() for claim in taken], flush=True)


def sweep(folder: str) -> None:
    """Kill a child before its 1st, 2nd, 3rd ... step, until one gets through; print the steps."""
    for stale in (False, True):
        step = 0
        while not _survives(folder, step, stale):
            step += 1
        print(f"{'takeover' if stale else 'claim'} {step}", flush=True)


def _survives(folder: str, step: int, stale: bool) -> bool:
    if stale:
        assert _in_child(lambda: _take_and_die(folder)) == -signal.SIGKILL
    killed = _in_child(lambda: _take_until(folder, step))
    assert _in_child(lambda: _take(folder)) == 0, f"not free after a kill at step {step}"
    left = [path.name for path in Path(folder).iterdir()]
    assert left == [], f"left after a kill at step {step}: {left}"
    return killed == 0


def _in_child(act) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _take(folder: str) -> None:
    with Claims(Path(folder)) as claims:
        begun = time.monotonic()
        assert claims.take("a") is not None
        assert time.monotonic() - begun < 1


def _take_and_die(folder: str) -> None:
    assert Claims(Path(folder)).take("a") is not None
    os.kill(os.getpid(), signal.SIGKILL)


def _take_until(folder: str, step: int) -> None:
    steps = 0

    def count(event: str, args: tuple) -> None:
        nonlocal steps
        if event in ("open", "os.link", "os.rename", "os.remove", "os.utime", "os.listdir"):
            if folder not in f"{args[0]}":
                return
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    sys.addaudithook(count)
    with Claims(Path(folder)) as claims:
        claim = claims.take("a")
        assert claim is not None
        assert claim.is_live()
        claim.release()


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    {"work": work, "race": race, "hold": hold, "sweep": sweep}[command](*words)
