"""Instance dropout and attention entropy, options of every aggregator that has attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from wsi.aggregators.abmil import ABMIL
from wsi.aggregators.base import Aggregator, Output
from wsi.data import pack
from wsi.errors import ConfigError


class Seen(Aggregator):
    """Keeps the batch it was given; its logits are sums of tiles."""

    def __init__(self, **options):
        super().__init__(2, None, embedding_dim=2, **options)

    def aggregate(self, batch):
        self.batch = batch
        return Output(torch.stack([part.sum(0) for part in batch.x.split(batch.sizes)]))


def numbered(sizes):
    """Return a batch whose tile i of the whole batch is (i, i) and lies at (i, i + 1)."""
    bags, start = [], 0
    for bag, n in enumerate(sizes):
        i = np.arange(start, start + n)
        x, xy0 = np.stack([i, i], 1).astype(np.float32), np.stack([i, i + 1], 1)
        bags.append((x, bag % 2, f"s{bag}", xy0))
        start += n
    return pack(bags)


def test_instance_dropout_leaves_out_that_share_of_tiles():
    torch.manual_seed(0)
    model = Seen(instance_dropout=0.3).train()
    model(numbered([6000, 4000]))
    first, second = model.batch.sizes
    assert first / 6000 == pytest.approx(0.7, abs=4 * (0.21 / 6000) ** 0.5)
    assert second / 4000 == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)


def test_tiles_that_are_kept_stay_whole_in_order_in_their_bag_and_at_their_place():
    torch.manual_seed(0)
    sizes = [5, 300, 20]
    batch = numbered(sizes)
    model = Seen(instance_dropout=0.5).train()
    model(batch)
    kept = model.batch
    assert (kept.slide_ids, kept.y.tolist()) == (batch.slide_ids, [0, 1, 0])
    rows = kept.x[:, 0].int()
    assert torch.equal(kept.x, batch.x[rows])
    assert torch.equal(kept.xy0, batch.xy0[rows])
    owners = np.repeat([0, 1, 2], sizes)[rows.numpy()]
    assert owners.tolist() == np.repeat([0, 1, 2], kept.sizes).tolist()
    assert (rows.diff() > 0).all()


def test_a_tile_of_every_bag_is_always_kept():
    model = Seen(instance_dropout=0.99).train()
    batch = numbered([1] * 200 + [2] * 200)
    for seed in range(3):
        torch.manual_seed(seed)
        model(batch)
        assert min(model.batch.sizes) == 1
        assert len(model.batch.sizes) == 400


def test_which_tile_of_a_small_bag_survives_is_left_to_chance():
    model = Seen(instance_dropout=0.99).train()
    torch.manual_seed(0)
    model(numbered([2] * 1000))
    second = (model.batch.x[:, 0] % 2).mean()
    assert float(second) == pytest.approx(0.5, abs=0.07)


def test_the_draw_follows_the_torch_seed():
    model = Seen(instance_dropout=0.5).train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model(numbered([50]))
        drawn.append(model.batch.x[:, 0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_evaluation_sees_every_tile_and_adds_no_loss():
    torch.manual_seed(0)
    model = ABMIL(2, 2, hidden=4, instance_dropout=0.5, attention_entropy=1.0).eval()
    output = model(numbered([40, 3]))
    assert len(output.attention) == 43
    assert output.aux_loss is None


def test_attention_in_training_covers_the_tiles_that_were_kept():
    torch.manual_seed(0)
    model = ABMIL(2, 2, hidden=4, instance_dropout=0.5).train()
    assert 0 < len(model(numbered([400])).attention) < 300


@pytest.mark.parametrize("heads", [1, 2])
def test_entropy_term_is_the_mean_over_bags_and_heads(heads):
    torch.manual_seed(0)
    sizes = [1, 5, 30]
    x = [np.random.default_rng(n).normal(size=(n, 3)) * 3 for n in sizes]
    model = ABMIL(3, 2, hidden=4, heads=heads, attention_entropy=0.7).train()
    output = model(pack([(bag, None, str(i), None) for i, bag in enumerate(x)]))
    bags = np.split(output.attention.detach().double().numpy(), np.cumsum(sizes)[:-1])
    expected = -0.7 * np.mean([entropy(a, axis=0) for a in bags])
    assert float(output.aux_loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_training_on_the_entropy_term_evens_out_attention():
    torch.manual_seed(0)
    batch = pack([(np.random.default_rng(0).normal(size=(20, 3)) * 3, 0, "s", None)])
    model = ABMIL(3, 2, hidden=8, attention_entropy=1.0).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = model(batch).aux_loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(-np.log(20), abs=1e-2)


def test_entropy_of_attention_that_is_zero_on_a_tile_has_a_finite_gradient():
    model = ABMIL(2, 2, hidden=4, attention_entropy=1.0).train()
    with torch.no_grad():
        model.attention.score.weight.mul_(1e6)
    model(numbered([50])).aux_loss.backward()
    assert all(p.grad.isfinite().all() for p in model.attention.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [("instance_dropout", 1.0), ("instance_dropout", -0.1), ("attention_entropy", -1.0)],
)
def test_an_impossible_option_is_named(option, value):
    with pytest.raises(ConfigError, match=option):
        ABMIL(2, 2, **{option: value})
