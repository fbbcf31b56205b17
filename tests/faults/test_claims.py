"""Claims among processes that are killed, suspended or racing.

The oracle is a log to which all of them append: the kernel keeps its lines in order, and nothing
of the toolkit writes or reads it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wsi.claims import Claims

WORKER = Path(__file__).with_name("claim_worker.py")
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start workers; those still running at the end are killed."""
    with ExitStack() as stack:

        def begin(*words: object, before: tuple[str, ...] = (), **env: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [*before, sys.executable, str(WORKER), *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | env,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def says(process: subprocess.Popen) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen, word: str) -> None:
    assert process.stdin
    process.stdin.write(word + "\n")
    process.stdin.flush()


def end(process: subprocess.Popen) -> None:
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 0


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def events(log: Path) -> list[tuple[str, int, str]]:
    lines = (line.split() for line in log.read_text().splitlines())
    return [(event, int(pid), name) for event, pid, name in lines]


def overlaps(log: Path) -> list[str]:
    """Return each entering of what another living process was in; a kill ends all its stays."""
    inside: dict[str, int] = {}
    found = []
    for event, pid, name in events(log):
        if event == "killed":
            inside = {n: p for n, p in inside.items() if p != pid}
        elif event == "leave":
            assert inside.pop(name) == pid
        elif name in inside:
            found.append(f"{name}: {pid} while {inside[name]} was in")
        else:
            inside[name] = pid
    assert inside == {}
    return found


@pytest.mark.parametrize("links", [{}, {"WITHOUT_LINKS": "1"}], ids=["links", "no links"])
def test_four_processes_do_each_of_200_things_once(
    tmp_path: Path, start: Start, links: dict[str, str]
) -> None:
    (tmp_path / "done").mkdir()
    words = ("work", tmp_path / "claims", tmp_path / "log", tmp_path / "done", 200)
    for process in [start(*words, **links) for _ in range(4)]:
        assert process.wait(60) == 0
    assert overlaps(tmp_path / "log") == []
    entered = Counter(name for event, _, name in events(tmp_path / "log") if event == "enter")
    assert entered == {f"site/{k}": 1 for k in range(200)}
    assert len({pid for _, pid, _ in events(tmp_path / "log")}) > 1  # they did share the work
    assert list((tmp_path / "claims").iterdir()) == []


def work_under_kills(tmp_path: Path, start: Start, n: int, kills: int) -> None:
    (tmp_path / "done").mkdir()
    words = ("work", tmp_path / "claims", tmp_path / "log", tmp_path / "done", n)
    rng = random.Random(n)
    workers = [start(*words) for _ in range(3)]
    for _ in range(kills):
        time.sleep(rng.uniform(0.15, 0.4))
        victim = workers.pop(rng.randrange(len(workers)))
        # Written while it still lives and does nothing more: others follow it within moments.
        victim.send_signal(signal.SIGSTOP)
        assert victim.returncode is None, "all was done before the kill: give it more to do"
        os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        with (tmp_path / "log").open("a") as log:
            log.write(f"killed {victim.pid} -\n")
        kill(victim)
        workers.append(start(*words))
    for process in workers:
        assert process.wait(120) == 0
    assert overlaps(tmp_path / "log") == []
    entered = Counter(name for event, _, name in events(tmp_path / "log") if event == "enter")
    assert entered.keys() == {f"site/{k}" for k in range(n)}
    assert sum(entered.values()) <= n + kills  # at most what the killed had in hand, once more
    assert list((tmp_path / "claims").iterdir()) == []


def test_what_killed_processes_had_in_hand_is_done_by_others(tmp_path: Path, start: Start) -> None:
    work_under_kills(tmp_path, start, n=2000, kills=5)


@pytest.mark.slow
def test_sixty_kills_cost_no_more_than_sixty_things(tmp_path: Path, start: Start) -> None:
    work_under_kills(tmp_path, start, n=12_000, kills=60)


@pytest.mark.parametrize("links", [{}, {"WITHOUT_LINKS": "1"}], ids=["links", "no links"])
def test_of_four_racers_for_a_stale_claim_exactly_one_wins(
    tmp_path: Path, start: Start, links: dict[str, str]
) -> None:
    names = [f"s{k}" for k in range(100)]
    before = start("hold", tmp_path / "claims", 180, *names)
    assert says(before) == "held"
    kill(before)
    assert len(list((tmp_path / "claims").glob("*.claim"))) == 100
    words = ("race", tmp_path / "claims", tmp_path / "log", time.monotonic() + 2, 100)
    racers = [start(*words, **links) for _ in range(4)]
    assert [says(racer) for racer in racers] == ["raced"] * 4
    assert sorted(name for _, _, name in events(tmp_path / "log")) == sorted(names)
    for racer in racers:
        end(racer)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_killed_holder_is_followed_within_a_second(tmp_path: Path, start: Start) -> None:
    holder = start("hold", tmp_path, 180, "a")
    assert says(holder) == "held"
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        told = claims.holder("a")
        assert told
        assert told.pid == holder.pid
        holder.kill()  # and not yet buried: a zombie is no holder either
        begun = time.monotonic()
        while claims.take("a") is None:
            time.sleep(0.01)
        assert time.monotonic() - begun < 1
    assert list(tmp_path.iterdir()) == []


def test_a_holder_suspended_past_the_ttl_loses_its_claim_and_knows(
    tmp_path: Path, start: Start
) -> None:
    holder = start("hold", tmp_path, 2.5, "a", "b")
    assert says(holder) == "held"
    with Claims(tmp_path, ttl_s=2.5, heartbeat_s=0.25) as claims:
        time.sleep(3)
        assert claims.take("a") is None  # renewed all the time
        holder.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        while (taken := claims.take("a")) is None:
            time.sleep(0.01)
        assert 1.5 < time.monotonic() - begun < 10
        holder.send_signal(signal.SIGCONT)
        tell(holder, "live?")
        assert says(holder) == "[False, True]"  # nobody wanted b meanwhile
        assert taken.is_live()
        end(holder)
        assert taken.is_live()  # its release left the new holder's claim alone
        assert [path.name for path in tmp_path.iterdir()] == ["a.claim"]
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_step_leaves_the_slide_free_and_nothing_behind(
    tmp_path: Path, start: Start
) -> None:
    (tmp_path / "claims").mkdir()
    sweep = start("sweep", tmp_path / "claims")
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 0
    steps = dict(line.split() for line in output.splitlines())
    assert int(steps["claim"]) >= 10
    assert int(steps["takeover"]) > int(steps["claim"])


def unshare(*flags: str) -> tuple[str, ...]:
    """Return the words that run a command in namespaces of its own; skip where that is closed."""
    command = ("unshare", "--user", "--map-root-user", *flags)
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("namespaces may not be made here")
    return command


def test_a_container_of_this_machine_is_judged_by_the_ttl(tmp_path: Path, start: Start) -> None:
    before = unshare("--pid", "--fork", "--kill-child", "--mount-proc")
    inside = start("hold", tmp_path, 180, "a", before=before)
    assert says(inside) == "held"
    kill(inside)
    with Claims(tmp_path) as claims:
        told = claims.holder("a")
        assert told
        assert told.pid == 1  # a number that means another process out here
        assert claims.take("a") is None
        os.utime(tmp_path / "a.claim", (time.time() - 200,) * 2)
        assert claims.take("a")


ON_A_SMALL_DISK = """
import os, subprocess, sys, time
from pathlib import Path
from wsi.claims import Claims
from wsi.errors import ReadOnlyError, ResourceError
from wsi.files import check_writable, publish_bytes

disk = Path(sys.argv[1])
filler = disk / "filler"
with Claims(disk) as claims, filler.open("wb", buffering=0) as full:
    first = claims.take("first")
    try:
        while True:
            full.write(bytes(4096))
    except OSError:
        pass
    for act in (lambda: claims.take("a"), lambda: publish_bytes(disk / "b", bytes(9999)),
                lambda: check_writable(disk)):
        try:
            act()
        except ResourceError as error:
            print(error.code)
    print(sorted(os.listdir(disk)), first.is_live())
    first.release()
    print(sorted(os.listdir(disk)))
filler.unlink()
with Claims(disk) as claims:
    print(claims.take("a") is not None)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    begun = time.monotonic()
    for act in (lambda: claims.take("b"), lambda: publish_bytes(disk / "b", b"b"),
                lambda: check_writable(disk), lambda: check_writable(disk / "new")):
        try:
            act()
        except ReadOnlyError as error:
            print(error.code)
    print(time.monotonic() - begun < 5, sorted(os.listdir(disk)), claims.holder("a").age_s)
print(sorted(os.listdir(disk)))
"""


def test_a_full_and_a_read_only_disk_are_told_and_keep_nothing(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$0" -c "$2" "$1"'
    command = [*unshare("--mount"), "sh", "-c", mounted, sys.executable, tmp_path, ON_A_SMALL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *["NOSPACE"] * 3,
        "['filler', 'first.claim'] True",
        "['filler']",
        "True",
        *["READONLY"] * 4,
        "True ['a.claim'] None",
        "['a.claim']",  # it cannot be removed, and is stale when its process has ended
    ]
