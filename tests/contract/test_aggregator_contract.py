"""What every registered aggregator promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.aggregators import AGGREGATORS
from wsi.data import pack
from wsi.errors import BagError, BagMismatchError

D, C = 12, 3


def tiles(n, seed):
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def packed(bags):
    return pack([(x, i % C, f"s{i}", None) for i, x in enumerate(bags)])


@pytest.mark.parametrize("name", AGGREGATORS.names())
class TestAggregator:
    SIZES = (1, 7, 400, 2, 30)

    def model(self, name, n_classes: int | None = C):
        torch.manual_seed(0)
        return AGGREGATORS.load(name)(D, n_classes).eval()

    def bags(self):
        return [tiles(n, seed) for seed, n in enumerate(self.SIZES)]

    def test_packing_never_changes_logits_embeddings_or_attention(self, name):
        model, bags = self.model(name), self.bags()
        together = model(packed(bags))
        start = 0
        for i, bag in enumerate(bags):
            alone = model(packed([bag]))
            torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                alone.embedding[0], together.embedding[i], atol=1e-5, rtol=1e-5
            )
            if alone.attention is not None:
                part = together.attention[start : start + len(bag)]
                torch.testing.assert_close(alone.attention, part, atol=1e-6, rtol=1e-4)
            start += len(bag)

    def test_the_order_of_bags_never_matters(self, name):
        model, bags = self.model(name), self.bags()
        order = [3, 0, 4, 2, 1]
        shuffled = model(packed([bags[i] for i in order])).logits
        torch.testing.assert_close(shuffled, model(packed(bags)).logits[order], atol=1e-5, rtol=0)

    def test_the_order_of_tiles_never_matters(self, name):
        model, bag = self.model(name), tiles(50, 1)
        order = np.random.default_rng(0).permutation(50)
        first, second = model(packed([bag])), model(packed([bag[order]]))
        torch.testing.assert_close(first.logits, second.logits, atol=1e-5, rtol=0)
        if first.attention is not None:
            torch.testing.assert_close(first.attention[order], second.attention)

    def test_attention_sums_to_one_within_each_bag_and_head(self, name):
        batch = packed(self.bags())
        attention = self.model(name)(batch).attention
        if attention is not None:
            assert attention.shape[0] == sum(self.SIZES)
            sums = np.add.reduceat(attention.detach().numpy(), batch.offsets[:-1].numpy())
            np.testing.assert_allclose(sums, 1, rtol=1e-5)

    def test_what_tiles_add_sums_to_the_embedding(self, name):
        model, bags = self.model(name), self.bags()
        terms = model.tile_terms(packed(bags))
        if terms is None:
            return
        embedding = model(packed(bags)).embedding.detach().numpy()
        h, a = terms.h.detach().numpy(), terms.attention.detach().numpy()
        heads, start = a.shape[1], 0
        for i, n in enumerate(self.SIZES):
            rows = slice(start, start + n)
            parts = np.split(h[rows], heads, axis=1)
            summed = [a[rows, k] @ part for k, part in enumerate(parts)]
            np.testing.assert_allclose(np.concatenate(summed), embedding[i], atol=1e-5)
            start += n

    def test_a_tile_left_out_leaves_the_others_in_proportion(self, name):
        model, bag = self.model(name), tiles(20, 3)
        terms, fewer = model.tile_terms(packed([bag])), model.tile_terms(packed([bag[1:]]))
        if terms is None:
            return
        torch.testing.assert_close(fewer.h, terms.h[1:], atol=1e-5, rtol=1e-5)
        rest = terms.attention[1:] / terms.attention[1:].sum(0)
        torch.testing.assert_close(fewer.attention, rest, atol=1e-6, rtol=1e-4)

    def test_gradient_reaches_every_parameter(self, name):
        model = self.model(name)
        model(packed(self.bags())).logits.square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key

    @pytest.mark.parametrize("n_classes", [2, 3, 11])
    def test_any_number_of_classes(self, name, n_classes):
        output = self.model(name, n_classes)(packed(self.bags()))
        assert output.logits.shape == (len(self.SIZES), n_classes)

    def test_without_classes_there_is_an_embedding_and_no_head(self, name):
        model = self.model(name, None)
        output = model(packed(self.bags()))
        assert output.logits is None
        assert output.embedding.shape == (len(self.SIZES), model.embedding_dim)

    def test_a_bag_of_a_hundred_thousand_tiles(self, name):
        with torch.no_grad():
            output = self.model(name)(packed([tiles(100_000, 0), tiles(1, 1)]))
        assert output.logits.isfinite().all()

    def test_an_empty_bag_is_named(self, name):
        class Handmade:
            x, sizes, slide_ids = torch.zeros(4, D), (4, 0), ("full", "hollow")
            y = xy0 = None

        with pytest.raises(BagError, match="hollow"):
            self.model(name)(Handmade())

    def test_tiles_of_another_encoder_are_named(self, name):
        with pytest.raises(BagMismatchError, match=r"s0.*12 features"):
            self.model(name)(pack([(np.zeros((3, D + 1)), None, "s0", None)]))

    def test_training_draws_nothing_at_evaluation(self, name):
        model, batch = self.model(name), packed(self.bags())
        assert torch.equal(model(batch).logits, model(batch).logits)
