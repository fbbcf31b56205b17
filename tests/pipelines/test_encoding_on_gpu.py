"""Encoders on a real device: run with -m gpu where there is one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from pipelines.encoding import Encoded, Encoding
from wsi.encoders import Encoder, load_encoder
from wsi.specs import Component

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TILES = np.random.default_rng(0).integers(0, 255, (256, 256, 256, 3), dtype=np.uint8)


def encoder(name: str, device: str) -> Encoder:
    return load_encoder(
        Component.model_validate({"name": name, "weights": "random"}), device, "fp32"
    )


def encoded(loaded: Encoder) -> tuple[Encoding, Encoded]:
    with Encoding([loaded], "cuda", 1) as encoding:
        encoding.put(Encoded("all", TILES, (0,)))
        while not (done := encoding.done()):
            time.sleep(0.01)
    return encoding, done[0]


def test_a_device_without_memory_goes_on_with_smaller_batches() -> None:
    loaded = encoder("timm:vit_large_patch16_224.augreg_in21k", "cuda")
    _, whole = encoded(loaded)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.2e9) / total)
    try:
        encoding, parts = encoded(loaded)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert parts.error is None
    assert encoding.halved > 0
    assert encoding.batch < len(TILES)
    np.testing.assert_allclose(parts.features[0], whole.features[0], atol=1e-5)


def test_a_device_gives_the_features_of_the_cpu() -> None:
    _, there = encoded(encoder("timm:resnet50.tv_in1k", "cuda"))
    here = encoder("timm:resnet50.tv_in1k", "cpu").embed(torch.from_numpy(TILES[:16])).numpy()
    np.testing.assert_allclose(there.features[0][:16], here, atol=2e-3)
