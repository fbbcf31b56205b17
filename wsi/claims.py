"""Who works on which slide, told by small files to all processes that share an output folder.

A claim saves work and never decides what is right: bags are published in one step and are equal
whoever makes them, so a claim that is lost costs time only.

One file per claimed slide lies in the folder. It is made by a hard link, which of all processes
and machines only one can make, and its date is renewed every few seconds. A claim is stale

- at once, when its process ran on this machine and has ended, or when its machine has been
  started anew since;
- else when it was not renewed for longer than `ttl_s`, by the clock of the file server.

Only who holds the file `<name>.takeover` removes a stale claim, so that a slow process never
removes the claim of a quicker one that came to the same conclusion.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

from wsi.claim_files import Record, create, read, render, withdraw
from wsi.errors import WsiError
from wsi.files import collect_temporaries, disk_errors, file_name_of, server_time
from wsi.processes import current_process, uptime

SUFFIX = ".claim"
TAKEOVER = ".takeover"
_ATTEMPTS = 3  # more would only be lost to quicker processes, too
_CLOCK_S = 1.0  # for so long the server's clock is reckoned on, not asked again

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who works on a slide.

    Attributes:
        host, pid: the process; host `unknown` and pid 0 where the claim cannot be read.
        since: when the claim was made, by the clock of that host.
        age_s: seconds since it was last renewed, by the file server's clock; None where the
            folder may not be written to and so does not tell the time.
    """

    host: str
    pid: int
    since: datetime
    age_s: float | None


class Claim:
    """A slide that this process works on, until it is released or others take it for dead.

    A forked child has no part in its parent's claims.
    """

    def __init__(self, name: str, path: Path, held: set[Claim]) -> None:
        self.name = name
        self._path = path
        self._held = held
        self._pid = os.getpid()
        self._content = render(name)

    def is_live(self) -> bool:
        """Return whether the claim is still this process's own, and renew it.

        To be asked right before publishing any outcome but a bag: a process that was suspended
        must not quarantine what another has finished since.
        """
        try:
            self._renew()
            return self._is_ours()
        except OSError:
            return False

    def release(self) -> None:
        """Give the slide free; a claim that is no longer this process's own is left alone."""
        self._held.discard(self)
        if self._pid != os.getpid():
            return
        try:
            withdraw(self._path, self._content)
        except OSError as error:
            _log.info("claim of %s not released: %s", self.name, error)

    def _make(self) -> bool:
        """Try to make the claim's file, and return whether nobody else had."""
        # Held before it exists: an interruption in between leaves nothing behind.
        self._held.add(self)
        try:
            made = create(self._path, self._content)
        except OSError:
            self._held.discard(self)
            raise
        if not made:
            self._held.discard(self)
        return made

    def _renew(self) -> None:
        """Date the claim anew if it is ours."""
        if self._is_ours():
            os.utime(self._path)

    def _is_ours(self) -> bool:
        seen = read(self._path)
        return self._pid == os.getpid() and seen is not None and seen.content == self._content


class Claims:
    """Which slides this process works on, told to all other processes of an output folder.

    Args:
        folder: where the claims lie; made when first needed.
        ttl_s: after how many seconds without a renewal a claim is stale.
        heartbeat_s: how often this process renews its own.
    """

    def __init__(self, folder: Path, *, ttl_s: float = 180.0, heartbeat_s: float = 10.0) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._heartbeat_s = heartbeat_s
        self._held: set[Claim] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._clock: tuple[float, float] | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def take(self, name: str) -> Claim | None:
        """Return the claim of slide `name`, or None when a living process holds it.

        Look at the slide's state again once it is claimed: who held it before may be done.

        Raises:
            ResourceError: the disk is full, or the folder may not be written to.
        """
        path = self._path(name)
        self._start_heartbeat()
        with disk_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                seen = read(path)
                if seen is None:
                    claim = Claim(name, path, self._held)
                    if claim._make():
                        return claim
                elif self._is_stale(seen):
                    self._clear(path, seen)
                else:
                    return None
        return None

    def holder(self, name: str) -> Holder | None:
        """Return who works on slide `name`; None when nobody living does."""
        seen = read(self._path(name))
        return None if seen is None or self._is_stale(seen) else self._holder(seen)

    def held(self) -> list[str]:
        """Return the slides that any living process works on, this one's among them, sorted."""
        live = [(path, seen) for path, seen in self._claims() if not self._is_stale(seen)]
        return sorted(seen.name or unquote(path.name.removesuffix(SUFFIX)) for path, seen in live)

    def close(self) -> None:
        """Release what this process holds, and clear away what ended processes left."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=self._heartbeat_s)
        self._thread = None
        for claim in list(self._held):
            claim.release()
        with contextlib.suppress(OSError, WsiError):
            self._sweep()

    # -- clearing -----------------------------------------------------------------------------

    def _clear(self, path: Path, stale: Record) -> None:
        """Remove the claim at `path` if it is still as it was when found stale."""
        guard = path.with_name(path.name.removesuffix(SUFFIX) + TAKEOVER)
        content = render(guard.name)
        try:
            if create(guard, content):
                if read(path) == stale:
                    withdraw(path, stale.content)
            else:
                self._break(guard)
        finally:
            withdraw(guard, content)

    def _break(self, guard: Path) -> None:
        """Remove the guard of a takeover in whose midst a process ended."""
        seen = read(guard)
        if seen is not None and self._is_stale(seen):
            withdraw(guard, seen.content)

    def _sweep(self) -> None:
        for path, seen in self._claims():
            if self._is_stale(seen):
                self._clear(path, seen)
        for guard in self._folder.glob(f"*{TAKEOVER}"):
            self._break(guard)
        collect_temporaries(self._folder)

    # -- judging ------------------------------------------------------------------------------

    def _is_stale(self, seen: Record) -> bool:
        process = seen.process
        if process is not None and process.is_gone():
            return True
        age = self._age(seen)
        if age is None:
            return False
        here = current_process()
        if process and process.host == here.host and process.boot_id != here.boot_id:
            # Renewed since this machine started, it is another machine's of the same name.
            return age > min(uptime(), self._ttl_s)
        return age > self._ttl_s

    def _age(self, seen: Record) -> float | None:
        now = self._server_now()
        return None if now is None else now - seen.mtime_ns / 1e9

    def _server_now(self) -> float | None:
        if self._clock is None or time.monotonic() - self._clock[0] > _CLOCK_S:
            try:
                answer = server_time(self._folder)
            except OSError:
                return None
            # Asked afterwards: a process suspended in between then takes claims for younger.
            self._clock = (time.monotonic(), answer)
        asked, answer = self._clock
        return answer + time.monotonic() - asked

    # -- reading ------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._folder / f"{file_name_of(name)}{SUFFIX}"

    def _claims(self) -> Iterator[tuple[Path, Record]]:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            seen = None if path.name.startswith(".") else read(path)
            if seen is not None:
                yield path, seen

    def _holder(self, seen: Record) -> Holder:
        process = seen.process
        return Holder(
            host=process.host if process else "unknown",
            pid=process.pid if process else 0,
            since=seen.since,
            age_s=self._age(seen),
        )

    # -- the heartbeat ------------------------------------------------------------------------

    def _start_heartbeat(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, args=(self._stop,), name="claims", daemon=True
        )
        self._thread.start()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(self._heartbeat_s):
            for claim in list(self._held):
                try:
                    claim._renew()
                except OSError as error:  # one missed renewal is no harm, and no reason to stop
                    _log.info("claim of %s not renewed: %s", claim.name, error)
