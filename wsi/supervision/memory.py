"""Memory that two processes see, and that has no name: nothing is left of it in the end."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray


def anonymous_file(size: int) -> int:
    """Return a descriptor of memory without a name: nothing is left of it, however a run ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("wsi", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def mapped(descriptor: int, slots: int, size: int) -> NDArray[np.uint8]:
    """Return the memory behind a descriptor, which is closed, as uint8 (slots, size)."""
    try:
        memory = mmap.mmap(descriptor, slots * size)
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, np.uint8).reshape(slots, size)
