"""A bounded local copy of the slides that are read next."""

from __future__ import annotations

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi.errors import ConfigError
from wsi.files import TEMPORARY_PREFIX
from wsi.staging.copier import Copier
from wsi.staging.private_folder import PrivateFolder

_FOLDER_BYTES = 4096  # what the private folder itself takes
_LISTEN_S = 1.0
_SILENCE = 300  # times _LISTEN_S without a word from a copier at work: it hangs
_DEATHS = 3  # of the copier in a row, then slides are read where they are
_END_S = 30.0
_CLOSED = "the stage is closed"
_GIVEN_UP = "the process that copies slides died again and again"


@dataclass(frozen=True)
class StageCounts:
    """What a stage has done so far.

    Attributes:
        slides: copied whole.
        bytes_copied: on disk, rounded up to blocks.
        originals: slides given out from their original place.
    """

    slides: int = 0
    bytes_copied: int = 0
    originals: int = 0


@dataclass
class _Copy:
    """One slide: waiting to be copied, in the making, ready, or left in its place."""

    source: Path
    key: int
    state: Literal["waiting", "making", "ready", "original"] = "waiting"
    asked: bool = False  # someone reads it or waits for it, so it is not dropped for others
    size_bytes: int = 0
    deaths: int = 0  # of the copier, over this slide
    why: str = "it was no longer wanted"  # left in its place


class Stage:
    """A bounded local copy of the slides that are read next; safe to use from several threads.

    A child process copies them, and removes them when this process ends, even if it is killed.
    What cannot be copied is read from its original place: `notes` says which slides, and why.

    Args:
        folder: on a local disk; a private folder is made in it. What dead processes have left
            there is removed.
        max_bytes: that copies take on disk at any time, the one in the making included.

    Raises:
        ConfigError: `folder` cannot be written, or `max_bytes` is not positive.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ConfigError(f"a stage of {max_bytes} bytes holds no slide — give it more")
        self._max_bytes = max_bytes
        self._folder = PrivateFolder(folder)
        self._changed = threading.Condition()
        self._copies: dict[Path, _Copy] = {}
        self._asked: OrderedDict[int, _Copy] = OrderedDict()  # someone waits for these
        self._ahead: OrderedDict[int, _Copy] = OrderedDict()
        self._ready: dict[int, _Copy] = {}
        self._making: _Copy | None = None
        self._used_bytes = _FOLDER_BYTES
        self._full = False  # nothing is copied ahead until something is removed
        self._freed = False  # something was removed since the copier was last told its room
        self._next_key = 0
        self._deaths = 0
        self._closed = False
        self._notes: dict[Path, str] = {}
        self._slides = self._bytes_copied = 0
        self._copier = Copier(self._folder)
        self._copier_lives = True
        self._listener = threading.Thread(target=self._listen, name="stage", daemon=True)
        self._listener.start()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notes(self) -> dict[Path, str]:
        """Why slides were given out from their original place, by slide."""
        with self._changed:
            return dict(self._notes)

    @property
    def counts(self) -> StageCounts:
        """What has been done so far."""
        with self._changed:
            return StageCounts(self._slides, self._bytes_copied, len(self._notes))

    def want(self, paths: Sequence[Path]) -> None:
        """Say which slides are needed next, in order, after those wanted before."""
        with self._changed:
            for path in paths:
                if path not in self._copies:
                    self._add(path)
            self._go_on()

    def get(self, path: Path, timeout_s: float | None = None) -> Path:
        """Return where to read a slide: its copy, once that is whole, or its original place.

        It is the original where the slide does not fit beside those that are being read, cannot
        be copied, or is not copied in time. Call `done` when it is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            copy = self._ask(path)
            while copy.state in ("waiting", "making"):
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    self._refuse(copy, f"it was not copied within {timeout_s:g} s")
                else:
                    self._changed.wait(left_s)
            if copy.state == "ready":
                return self._place(copy) / path.name
            self._notes[path] = copy.why
            return path

    def is_settled(self, path: Path) -> bool:
        """Return whether `get` would answer at once; what is asked for is copied first."""
        with self._changed:
            return self._ask(path).state in ("ready", "original")

    def done(self, path: Path) -> None:
        """Say that a slide is no longer needed, copied or not: it makes room for others."""
        with self._changed:
            copy = self._copies.pop(path, None)
            if copy is not None:
                self._drop(copy)
                self._go_on()

    def close(self) -> None:
        """Remove all copies and end the process that makes them."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for copy in [*self._copies.values()]:
                self._refuse(copy, _CLOSED)
        self._copier.end(_END_S)
        self._listener.join(_END_S)
        self._copier.forget()
        self._folder.remove()

    # -- all below hold self._changed ----------------------------------------------------------

    def _ask(self, path: Path) -> _Copy:
        copy = self._copies.get(path) or self._add(path)
        copy.asked = True
        if self._ahead.pop(copy.key, None):
            self._asked[copy.key] = copy
        self._go_on()
        return copy

    def _add(self, path: Path) -> _Copy:
        self._next_key += 1
        copy = self._copies[path] = _Copy(path, self._next_key)
        self._ahead[copy.key] = copy
        return copy

    def _go_on(self) -> None:
        """Have the next slide copied, if there is one and nothing is being copied."""
        if self._closed or self._deaths > _DEATHS:
            for copy in [*self._asked.values()]:
                self._refuse(copy, _CLOSED if self._closed else _GIVEN_UP)
            return
        if self._making is not None:
            return
        queue = self._asked or (self._ahead if not self._full else None)
        if queue:
            _, self._making = queue.popitem(last=False)
            self._making.state = "making"
            self._freed = False
            self._copier.send(
                do="copy",
                key=self._making.key,
                source=str(self._making.source.absolute()),
                room=self._max_bytes - self._used_bytes,
            )

    def _drop(self, copy: _Copy) -> None:
        """Take a slide out of its queue, the copier's hands, or the disk."""
        self._asked.pop(copy.key, None)
        self._ahead.pop(copy.key, None)
        if copy.state == "making":
            self._copier.send(do="cancel", key=copy.key)
        elif copy.state == "ready":
            self._remove(copy)
            self._used_bytes -= self._ready.pop(copy.key).size_bytes
            self._full, self._freed = False, True
        copy.state = "original"
        self._changed.notify_all()

    def _refuse(self, copy: _Copy, why: str) -> None:
        self._drop(copy)
        copy.why = why

    def _place(self, copy: _Copy) -> Path:
        return self._folder.path / str(copy.key)

    def _remove(self, copy: _Copy) -> None:
        place = self._place(copy)
        for folder in (place, place.with_name(TEMPORARY_PREFIX + place.name)):
            shutil.rmtree(folder, ignore_errors=True)

    def _heed(self, message: dict[str, Any]) -> None:
        """Do what follows from a message of the copier."""
        copy, size_bytes = self._making, message.get("bytes", 0)
        if message["what"] == "busy" or copy is None:
            return
        self._making = None
        self._deaths = 0
        if copy.state != "making":  # no longer wanted
            self._remove(copy)
        elif message["what"] == "copied":
            self._keep(copy, size_bytes)
        elif message["what"] == "no-room":
            self._make_room(copy, size_bytes)
        else:
            self._refuse(copy, message["why"])
        self._go_on()

    def _keep(self, copy: _Copy, size_bytes: int) -> None:
        copy.state, copy.size_bytes = "ready", size_bytes
        self._ready[copy.key] = copy
        self._used_bytes += size_bytes
        self._slides += 1
        self._bytes_copied += size_bytes
        self._changed.notify_all()

    def _make_room(self, copy: _Copy, needed_bytes: int) -> None:
        """Find room for a slide that someone waits for; one copied ahead waits for room itself."""
        room_bytes = self._max_bytes - _FOLDER_BYTES
        in_use_bytes = sum(other.size_bytes for other in self._ready.values() if other.asked)
        unread = [other for other in self._ready.values() if not other.asked]
        if needed_bytes > room_bytes:
            self._refuse(copy, f"{_gb(needed_bytes)} do not fit into a stage of {_gb(room_bytes)}")
        elif self._freed or not copy.asked:
            self._put_back(copy)
            self._full = not self._freed
        elif needed_bytes > room_bytes - in_use_bytes:
            self._refuse(copy, "no room beside the slides that are being read")
        elif not unread:
            self._refuse(copy, "the disk of the stage is full")
        else:
            self._drop(unread[-1])  # it would have been read last
            self._put_back(unread[-1])
            self._put_back(copy)

    def _try_again(self, copy: _Copy, why: str) -> None:
        """Have a slide copied again, once, unless it is no longer wanted."""
        copy.deaths += 1
        if copy.state == "making":
            self._put_back(copy) if copy.deaths == 1 else self._refuse(copy, why)

    def _put_back(self, copy: _Copy) -> None:
        """Have a slide copied before all others of its queue."""
        queue = self._asked if copy.asked else self._ahead
        copy.state = "waiting"
        queue[copy.key] = copy
        queue.move_to_end(copy.key, last=False)

    # -- the thread that listens ---------------------------------------------------------------

    def _listen(self) -> None:
        """Heed the copier as long as there is one."""
        silence = 0
        while self._copier_lives or self._revive():
            try:
                message = self._copier.receive(_LISTEN_S)
            except EOFError:
                self._copier_lives = False
                continue
            with self._changed:
                silence = 0 if message or not self._making else silence + 1
                if message:
                    self._heed(message)
            if silence > _SILENCE:
                self._copier_lives = False
                silence = 0

    def _revive(self) -> bool:
        """Start another copier in place of one that died or hangs, unless it is of no use."""
        with self._changed:
            if self._closed:
                return False
            code = self._copier.kill()
            self._copier.forget()
            self._deaths += 1
            if (copy := self._making) is not None:
                self._making = None
                self._remove(copy)
                self._try_again(copy, f"the process that copies slides died or hung ({code})")
            try:
                if self._deaths <= _DEATHS:
                    self._copier = Copier(self._folder)
                    self._copier_lives = True
            except OSError:  # no memory, no process: slides are read where they are
                self._deaths = _DEATHS + 1
            self._go_on()
            return self._copier_lives


def _gb(n: int) -> str:
    return f"{n / 1e9:.3g} GB"
