"""Faults of native decoders, by the name of the slide: `read-hang.tif` hangs while tiles are read.

Python imports this module at the start of every process that has its folder on the path. It does
nothing to processes that own slides' bags, only to children that open slides: there a fault
strikes when the file is opened, to be looked at (`scan-`) or to have its tiles read (`read-`).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_GB = 10**9


def _fail(path: str) -> None:
    raise OSError(errno.EIO, "Input/output error", path)


FAULTS: dict[str, Callable[[str], object]] = {
    "segv": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": lambda path: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda path: time.sleep(600),
    "alloc": lambda path: bytearray(3 * _GB),
    "eio": _fail,
    "exit": lambda path: os._exit(7),
}


def _strike(event: str, args: tuple) -> None:
    if event != "open" or not isinstance(args[0], str | os.PathLike):
        return
    stage, _, fault = Path(args[0]).stem.partition("-")
    # Tiles are read through a bare descriptor, which has no mode; all else by a file object.
    if fault in FAULTS and stage == ("read" if args[1] is None else "scan"):
        FAULTS[fault](str(args[0]))


if sys.argv[:1] == ["-c"]:  # as children are started; a run itself is a module
    sys.addaudithook(_strike)
