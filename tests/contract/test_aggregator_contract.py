"""What every registered aggregator promises."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.profiler import ProfilerActivity, profile

from wsi.aggregators import AGGREGATORS
from wsi.data import pack
from wsi.errors import BagError, BagMismatchError, ConfigError
from wsi.objectives import OBJECTIVES

D, C = 12, 3
MEBIBYTE = 1 << 20
PER_TILE = 24 * 1024  # bytes a tile may take while a narrow model trains; a square of tiles cannot
EVERY_PAIR = {"transmil", "transformer"}  # their time, though not memory, is a square of tiles

HEADLESS = [n for n in AGGREGATORS.names() if not AGGREGATORS.load(n).needs_head]
HEADED = [n for n in AGGREGATORS.names() if AGGREGATORS.load(n).needs_head]


def tiles(n, seed, dim=D):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def corners(n):
    side = int(np.ceil(np.sqrt(n)))
    i = np.arange(n)
    return np.stack([i % side, i // side], axis=1).astype(np.int32) * 512


def packed(bags, order=None):
    """Return a batch of (tiles, corners) or tiles; labels are the place of the bag."""
    pairs = [bag if isinstance(bag, tuple) else (bag, corners(len(bag))) for bag in bags]
    rows = range(len(bags)) if order is None else order
    return pack([(pairs[i][0], i % C, f"s{i}", pairs[i][1]) for i in rows])


def made(name, n_classes: int | None = C, *, dim=D, seed=0, **settings):
    """Return a narrow model, in evaluation mode."""
    if "hidden" in AGGREGATORS.settings(name):
        settings = {"hidden": 32, **settings}
    torch.manual_seed(seed)
    return AGGREGATORS.load(name)(dim, n_classes, **settings).eval()


def loss_of(output):
    loss = output.logits.square().sum() + output.logits.sum()
    return loss if output.aux_loss is None else loss + output.aux_loss


def near(actual, expected, atol=1e-5, rtol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def test_models_that_need_a_head_name_every_objective_that_gives_none():
    without = [n for n in OBJECTIVES.names() if OBJECTIVES.load(n).wants == "embedding"]
    for name in HEADED:
        with pytest.raises(ConfigError, match=f"'{name}'") as raised:
            made(name, None)
        said = str(raised.value)
        assert set(said.partition("(")[2].partition(")")[0].split(", ")) == set(without)
        proposed = said.partition("such as ")[2].replace(",", " ").split()
        for objective in ("ce", "pc_softmax", "focal", "hybrid"):
            assert objective in proposed
            assert OBJECTIVES.load(objective).wants == "logits"
        instead = said.rpartition("aggregator=")[2] if " aggregator." not in said else "abmil"
        assert instead in HEADLESS


@pytest.mark.parametrize("name", AGGREGATORS.names())
class TestAggregator:
    SIZES = (1, 7, 400, 2, 30)

    def bags(self, sizes=SIZES):
        return [tiles(n, seed) for seed, n in enumerate(sizes)]

    @pytest.mark.parametrize("sizes", [SIZES, (3, 5000, 1)], ids=["small", "very unlike"])
    def test_packing_never_changes_what_is_said_of_a_bag(self, name, sizes):
        model, bags = made(name), self.bags(sizes)
        with torch.no_grad():
            together = model(packed(bags))
            start = 0
            for i, bag in enumerate(bags):
                alone = model(packed([bag]))
                near(alone.logits[0], together.logits[i])
                near(alone.embedding[0], together.embedding[i])
                rows = slice(start, start + len(bag))
                if alone.attention is not None:
                    near(alone.attention, together.attention[rows], atol=1e-6, rtol=1e-4)
                if alone.evidence is not None:
                    near(alone.evidence, together.evidence[rows], rtol=1e-4)
                start += len(bag)

    def test_the_order_of_bags_never_matters(self, name):
        model, bags, order = made(name), self.bags(), [3, 0, 4, 2, 1]
        near(model(packed(bags, order)).logits, model(packed(bags)).logits[order])

    def test_the_order_of_tiles_with_their_places_never_matters(self, name):
        model, x, xy0 = made(name), tiles(50, 1), corners(50)
        order = np.random.default_rng(0).permutation(50)
        first, second = model(packed([(x, xy0)])), model(packed([(x[order], xy0[order])]))
        near(first.logits, second.logits)
        near(first.embedding, second.embedding)
        if first.attention is not None:
            near(first.attention[order], second.attention)

    def test_places_matter_only_where_it_is_said(self, name):
        model, x, xy0 = made(name), tiles(50, 1), corners(50)
        order = np.random.default_rng(0).permutation(50)
        first, second = model(packed([(x, xy0)])).logits, model(packed([(x, xy0[order])])).logits
        if type(model).uses_coordinates:
            assert (first - second).abs().max() > 1e-6
        else:
            assert torch.equal(first, second)

    def test_attention_sums_to_one_within_each_bag_and_head(self, name):
        batch = packed(self.bags())
        attention = made(name)(batch).attention
        if attention is not None:
            assert attention.shape[0] == sum(self.SIZES)
            assert (attention >= 0).all()
            sums = np.add.reduceat(attention.detach().numpy(), batch.offsets[:-1].numpy())
            np.testing.assert_allclose(sums, 1, rtol=1e-5)

    def test_evidence_sums_to_the_logits(self, name):
        batch = packed(self.bags())
        output = made(name)(batch)
        if output.evidence is not None:
            sums = np.add.reduceat(output.evidence.detach().double().numpy(), batch.offsets[:-1])
            np.testing.assert_allclose(sums, output.logits.detach(), atol=1e-5)

    def test_what_tiles_add_sums_to_the_embedding(self, name):
        model, bags = made(name), self.bags()
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
        model, bag = made(name), tiles(20, 3)
        terms, fewer = model.tile_terms(packed([bag])), model.tile_terms(packed([bag[1:]]))
        if terms is None:
            return
        near(fewer.h, terms.h[1:])
        rest = terms.attention[1:] / terms.attention[1:].sum(0)
        near(fewer.attention, rest, atol=1e-6, rtol=1e-4)

    def test_a_linear_head_gives_the_logits_of_the_embedding(self, name):
        model = made(name)
        head, output = model.linear_head(), model(packed(self.bags()))
        if head is not None:
            near(output.embedding @ head[0].T + head[1], output.logits)

    def test_gradient_reaches_every_parameter(self, name):
        model = made(name).train()
        loss_of(model(packed(self.bags()))).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key

    def test_a_bag_of_one_tile_can_be_learned_from(self, name):
        model = made(name).train()
        output = model(packed([tiles(1, 0)]))
        loss_of(output).backward()
        assert output.logits.isfinite().all()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)
        assert sum(grad.abs().sum() for grad in grads) > 0

    @pytest.mark.parametrize("n_classes", [2, 3, 7])
    def test_any_number_of_classes(self, name, n_classes):
        model = made(name, n_classes)
        output = model(packed(self.bags()))
        assert output.logits.shape == (len(self.SIZES), n_classes)
        assert output.embedding.shape == (len(self.SIZES), model.embedding_dim)

    def test_the_default_settings_work(self, name):
        torch.manual_seed(0)
        output = AGGREGATORS.load(name)(D, C)(packed(self.bags((3, 1))))
        assert output.logits.shape == (2, C)

    def test_an_empty_bag_is_named(self, name):
        class Handmade:
            x, sizes, slide_ids = torch.zeros(4, D), (4, 0), ("full", "hollow")
            y = xy0 = None

        with pytest.raises(BagError, match="hollow"):
            made(name)(Handmade())

    def test_tiles_of_another_encoder_are_named(self, name):
        with pytest.raises(BagMismatchError, match=r"s0.*12 features"):
            made(name)(packed([np.zeros((3, D + 1), np.float32)]))

    def test_evaluation_draws_nothing_and_adds_no_loss(self, name):
        model, batch = made(name), packed(self.bags())
        first, second = model(batch), model(batch)
        assert torch.equal(first.logits, second.logits)
        assert first.aux_loss is None

    def test_training_follows_the_torch_seed(self, name):
        def trained(seed):
            model = made(name, instance_dropout=0.3).train()
            torch.manual_seed(seed)
            loss = loss_of(model(packed(self.bags())))
            loss.backward()
            return [loss.detach(), *(p.grad for p in model.parameters())]

        first, second, other = trained(1), trained(1), trained(2)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first[0], other[0])

    def test_weights_go_into_another_model_and_back(self, name):
        model, other, batch = made(name), made(name, seed=1), packed(self.bags())
        assert not torch.equal(model(batch).logits, other(batch).logits)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(batch).logits, other(batch).logits)

    def test_half_precision_is_near(self, name):
        model, batch = made(name), packed(self.bags())
        with torch.no_grad():
            full = model(batch).logits
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = model(batch).logits
        assert half.isfinite().all()
        near(half.float(), full, atol=0.02, rtol=0.05)

    def test_learned_attention_comes_with_its_options(self, name):
        attention = made(name).train()(packed(self.bags())).attention
        settings = AGGREGATORS.settings(name)
        assert "instance_dropout" in settings
        if attention is None or not attention.requires_grad:
            return
        model = made(name, attention_entropy=10.0).train()
        plain = made(name).train()
        torch.manual_seed(5)
        with_term = model(packed(self.bags()))
        torch.manual_seed(5)
        without = plain(packed(self.bags())).aux_loss
        bags = np.split(with_term.attention.detach().numpy(), np.cumsum(self.SIZES)[:-1])
        term = -10 * np.mean([entropy(a.astype(np.float64), axis=0) for a in bags])
        expected = term + (0.0 if without is None else without.item())
        assert with_term.aux_loss.item() == pytest.approx(expected, rel=1e-4)

    def test_instance_dropout_is_handed_up(self, name):
        model = made(name, instance_dropout=0.5).train()
        seen = []
        model.aggregate = lambda batch, inner=model.aggregate: seen.append(batch) or inner(batch)
        model(packed([tiles(400, 0)]))
        assert 120 < len(seen[0].x) < 280

    @pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
    def test_memory_of_training_is_bounded_by_the_number_of_tiles(self, name, n, tmp_path):
        if name in EVERY_PAIR and n == 20_000:
            n = 5_000
        one = {"heads": 1} if name in EVERY_PAIR else {}  # time goes by heads
        model, batch = made(name, **one).train(), packed([tiles(n, 0), tiles(1, 1)])
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            output = model(batch)
            loss_of(output).backward()
        assert output.logits.isfinite().all()
        seen.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        held = [e["args"] for e in events if e.get("name") == "[memory]"]
        peak = max(e["Total Allocated"] for e in held) - held[0]["Total Allocated"]
        assert 4 * D * n / 10 < peak < n * PER_TILE, f"{peak / MEBIBYTE:.0f} MiB"


@pytest.mark.parametrize("name", HEADLESS)
def test_without_classes_there_is_an_embedding_and_no_head(name):
    model = made(name, None)
    sizes = (1, 7, 400)
    batch = packed([tiles(n, n) for n in sizes])
    output = model(batch)
    assert output.logits is None
    assert output.embedding.shape == (3, model.embedding_dim)
    near(output.embedding[1], model(packed([tiles(7, 7)])).embedding[0])
    model.train()
    output = model(batch)
    loss = output.embedding.square().sum()
    (loss if output.aux_loss is None else loss + output.aux_loss).backward()
    assert all(p.grad is not None for p in model.parameters())
