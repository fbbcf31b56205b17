"""The schedule against torch's own schedulers."""

from __future__ import annotations

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from wsi.specs import FitSpec
from wsi.training.optimiser import adamw, learning_rate, set_rate


def test_rates_are_those_of_torchs_linear_warm_up_and_cosine():
    spec = FitSpec(epochs=6, lr=0.01, warmup_epochs=2)
    steps, warmup = 5, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    ramp = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    fall = CosineAnnealingLR(optimizer, T_max=6 * steps - warmup)
    reference = SequentialLR(optimizer, [ramp, fall], milestones=[warmup])
    expected = []
    for _ in range(6 * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    rates = [learning_rate(step, steps, spec) for step in range(6 * steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert learning_rate(0, 5, FitSpec(lr=0.01, warmup_epochs=0)) == 0.01


def test_warm_up_longer_than_training_only_rises():
    spec = FitSpec(epochs=2, lr=0.01, warmup_epochs=50)
    rates = [learning_rate(step, 4, spec) for step in range(8)]
    np.testing.assert_allclose(rates, 0.01 * np.arange(1, 9) / 8)


def test_a_rate_reaches_every_group():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = adamw(parameters, FitSpec(lr=0.01, weight_decay=0.3))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
