"""Seeds: global random state is borrowed, never left changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch seeded, and give the caller's random state back afterwards.

    Initial weights and dropout draw from torch's global generators; everything else in the
    toolkit takes a generator of its own.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed % 2**63)
        yield
