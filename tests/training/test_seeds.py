"""Seeding gives equal draws and gives the caller's state back."""

from __future__ import annotations

import torch

from wsi.training.seeds import seeded


def test_equal_seeds_draw_equally_and_others_do_not():
    draws = []
    for seed in (3, 3, 4, -3):
        with seeded(seed):
            draws.append(torch.randn(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    with seeded(1):
        torch.randn(100)
    assert torch.equal(torch.randn(3), expected)
