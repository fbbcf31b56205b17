"""Focal loss against the direct formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from wsi.errors import ConfigError
from wsi.objectives.focal import Focal

Y = np.arange(9) % 3


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weight", ["none", [1.0, 2.0, 0.5]])
def test_the_loss_is_that_of_the_formula(outputs, gamma, weight):
    output = outputs()
    p = softmax(output.logits.numpy(), axis=1)[np.arange(9), Y]
    w = np.ones(3) if weight == "none" else np.array(weight)
    expected = np.mean(w[Y] * (1 - p) ** gamma * -np.log(p))
    loss = Focal(3, 6, [1, 1, 1], gamma=gamma, weight=weight)(output, torch.from_numpy(Y))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)


def test_certain_bags_have_a_finite_gradient(outputs):
    """1 - p is 0 in float32, and gamma below 1 has an infinite slope there."""
    output = outputs(dtype=torch.float32)
    n = (1000 * torch.eye(3)[Y]).requires_grad_()
    output.logits = n
    for y in (Y, (Y + 1) % 3):
        loss = Focal(3, 6, [1, 1, 1], gamma=0.5)(output, torch.from_numpy(y))
        (gradient,) = torch.autograd.grad(loss, n)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_negative_gamma_is_refused():
    with pytest.raises(ConfigError, match="focal: gamma=-1 must be within 0 and 100"):
        Focal(3, 6, [1, 1, 1], gamma=-1)
