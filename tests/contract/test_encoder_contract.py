"""What every encoder does, whatever computes its features."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from wsi.encoders import CATALOG, Encoder, encoder_info, load_encoder
from wsi.errors import EncoderError
from wsi.specs import Component


def tiles(n: int, px: int, seed: int = 0) -> torch.Tensor:
    """Return smooth, strongly differing tiles (n, px, px, 3)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(40, 250, (n, 3, 9, 9))).float()
    image = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bicubic")
    noise = torch.from_numpy(rng.normal(0, 12, (n, 3, px, px)))
    return (image + noise).clamp(0, 255).byte().permute(0, 2, 3, 1)


def tolerance(encoder: Encoder) -> dict[str, float]:
    """Return how far features may be apart that differ by the order of sums alone."""
    exact = encoder.describe()["compute"] == "fp32"
    return {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.05, "atol": 0.05}


class EncoderContract:
    """Inherit and set `component` to have an encoder checked."""

    component: Component
    many = 4

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls) -> Encoder:
        return load_encoder(cls.component)

    def test_features_are_float32_of_the_declared_width(self, encoder):
        features = encoder.embed(tiles(2, encoder.info.tile_px))
        assert features.shape == (2, encoder.info.dim)
        assert features.dtype == torch.float32
        assert not features.requires_grad
        assert bool(torch.isfinite(features).all())

    def test_info_is_the_same_before_loading(self, encoder):
        assert encoder_info(self.component) == encoder.info

    def test_features_are_deterministic_and_tell_tiles_apart(self, encoder):
        batch = tiles(2, encoder.info.tile_px)
        again = load_encoder(self.component)
        torch.testing.assert_close(again.embed(batch), encoder.embed(batch), rtol=0, atol=0)
        assert again.fingerprint == encoder.fingerprint
        assert float(encoder.embed(batch).std(dim=0).max()) > 1e-3

    def test_a_tile_gives_the_same_features_in_any_batch(self, encoder):
        batch = tiles(self.many, encoder.info.tile_px)
        together = encoder.embed(batch)
        alone = torch.cat([encoder.embed(batch[k : k + 1]) for k in range(self.many)])
        torch.testing.assert_close(alone, together, **tolerance(encoder))

    def test_the_order_of_memory_does_not_matter(self, encoder):
        batch = tiles(2, encoder.info.tile_px)
        strided = batch.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        torch.testing.assert_close(
            encoder.embed(strided), encoder.embed(batch), **tolerance(encoder)
        )

    def test_threads_that_embed_at_the_same_time_do_not_disturb_each_other(self, encoder):
        batches = [tiles(2, encoder.info.tile_px, seed) for seed in range(4)]
        expected = [encoder.embed(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(2):
                found = list(pool.map(encoder.embed, batches))
                for ours, theirs in zip(found, expected, strict=True):
                    torch.testing.assert_close(ours, theirs, **tolerance(encoder))

    def test_no_tiles_give_no_rows(self, encoder):
        px = encoder.info.tile_px
        nothing = torch.empty(0, px, px, 3, dtype=torch.uint8)
        assert encoder.embed(nothing).shape == (0, encoder.info.dim)

    @pytest.mark.parametrize(
        "bad",
        [
            torch.zeros(1, 64, 64, 3),
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            torch.zeros(64, 64, 3, dtype=torch.uint8),
            torch.zeros(1, 64, 48, 3, dtype=torch.uint8),
        ],
    )
    def test_anything_but_square_uint8_tiles_is_refused(self, encoder, bad):
        with pytest.raises(EncoderError, match="uint8"):
            encoder.embed(bad)

    def test_description_is_json_and_says_when_not_as_published(self, encoder):
        own = encoder.describe()
        assert json.loads(json.dumps(own)) == own
        assert own["fingerprint"] == encoder.fingerprint
        untrained = own.get("weights") == "random"
        assert own["name"] == encoder.info.name + ("-random" if untrained else "")
        assert own["dim"] == encoder.info.dim
        assert own["compute"] in ("fp32", "bf16", "fp16")
        assert own["as_published"]
        assert not encoder.describe(tile_px=512)["as_published"]
        assert not encoder.describe(mpp=1.0)["as_published"]
        assert encoder.describe(mpp=1.0)["effective_mpp"] == pytest.approx(
            own["effective_mpp"] / encoder.info.mpp, abs=2e-6
        )
        assert len(encoder.fingerprint) == 64


class TestTexture(EncoderContract):
    component = Component(name="texture-v1")
    many = 11  # more than it takes at a time


class TestResnet50(EncoderContract):
    component = Component(name="resnet50", weights="random")  # pyright: ignore[reportCallIssue]


class TestTimmConvolutional(EncoderContract):
    component = Component(name="timm:resnet18", weights="random")  # pyright: ignore[reportCallIssue]


class TestTimmTokens(EncoderContract):
    component = Component.model_validate(
        {"name": "timm:vit_tiny_patch16_224", "weights": "random", "pooling": "cls+mean"}
    )


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_catalog_rows_are_named_as_listed_and_complete(row):
    assert CATALOG[row.name] is row
    assert row.licence
    assert row.dim > 0
    assert min(row.std) > 0
    assert not row.crop or (row.resize or row.tile_px) >= row.crop
