"""Squentropy against the direct formula."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss

from wsi.objectives.squentropy import Squentropy


def test_the_loss_is_cross_entropy_and_the_square_of_the_other_logits(outputs):
    output, y = outputs(C=4), np.arange(9) % 4
    n = output.logits.numpy()
    squares = [np.delete(row, c) @ np.delete(row, c) / 3 for row, c in zip(n, y, strict=True)]
    expected = log_loss(y, softmax(n, axis=1)) + np.mean(squares)
    loss = Squentropy(4, 6, [1, 1, 1, 1])(output, torch.from_numpy(y))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
