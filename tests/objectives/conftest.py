"""What the tests of objectives share: the reference vectors and made-up outputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

_FILE = Path(__file__).parent / "vectors" / "ncmi_vectors.json"


@pytest.fixture(scope="session")
def vectors():
    """Return the reference vectors of one operation."""
    everything = json.loads(_FILE.read_text())["vectors"]
    return lambda op: [v for v in everything if v["op"] == op]


@pytest.fixture
def outputs():
    """Return outputs (B, E) and (B, C) of float64 that are the same on every call."""

    def make(B=9, C=3, E=6, dtype=torch.float64, seed=0):
        g = torch.Generator().manual_seed(seed)
        embedding = torch.randn(B, E, generator=g, dtype=torch.float64)
        logits = torch.randn(B, C, generator=g, dtype=torch.float64)
        return SimpleNamespace(embedding=embedding.to(dtype), logits=logits.to(dtype))

    return make
