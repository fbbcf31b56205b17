"""Mean and maximum pooling against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.aggregators.pooling import MaxPooling, MeanPooling
from wsi.data import pack


@pytest.mark.parametrize(("kind", "pool"), [(MeanPooling, np.mean), (MaxPooling, np.max)])
def test_embedding_is_numpys_pooling_of_each_bag(kind, pool):
    torch.manual_seed(0)
    model = kind(5, 2, hidden=7).eval()
    bags = [np.random.default_rng(n).normal(size=(n, 5)) for n in (1, 3, 40)]
    output = model(pack([(x, None, str(i), None) for i, x in enumerate(bags)]))
    w, b = (p.detach().double().numpy() for p in model.embed[0].parameters())
    expected = np.stack([pool(np.maximum(0, x @ w.T + b), axis=0) for x in bags])
    np.testing.assert_allclose(output.embedding.detach(), expected, atol=1e-5)
    logits = expected @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_allclose(output.logits.detach(), logits, atol=1e-5)
