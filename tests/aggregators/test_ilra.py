"""ILRA against torch's multi-head attention with the same weights, one bag at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, silu

from wsi.aggregators.ilra import ILRA
from wsi.data import pack
from wsi.errors import ConfigError

D, E, H = 5, 8, 2


def made(**settings):
    torch.manual_seed(0)
    model = ILRA(D, 3, hidden=E, heads=H, latents=4, **settings).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def attending(w, q, k, gated):
    """Return (GAB(q, k), its attention (H, Nq, Nk)) of one bag."""
    theirs = nn.MultiheadAttention(E, H, batch_first=True).double()
    key = k @ w["key_value.weight"].T + w["key_value.bias"]
    query = q @ w["query.weight"].T + w["query.bias"]
    with torch.no_grad():  # the maps before attention are ours, and not square
        theirs.in_proj_weight.copy_(torch.eye(E).repeat(3, 1))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(w["out.weight"])
        theirs.out_proj.bias.copy_(w["out.bias"])
        mixed, a = theirs(
            query[None], key[None, :, :E], key[None, :, E:], average_attn_weights=False
        )
    o = layer_norm(query + mixed[0], (E,), w["norms.0.weight"], w["norms.0.bias"])
    o = o + (o @ w["inner.weight"].T + w["inner.bias"]).relu()
    o = layer_norm(o, (E,), w["norms.1.weight"], w["norms.1.bias"])
    if gated:
        o = o * silu(q @ w["gate.0.weight"].T + w["gate.0.bias"])
    return o, a[0]


def part(module):
    return {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("layers", [1, 2])
def test_output_is_the_papers_equations(layers):
    model, rng = made(layers=layers), np.random.default_rng(0)
    bags = [torch.from_numpy(rng.normal(size=(n, D))) for n in (1, 5, 40)]
    batch = pack([(x, None, str(i), None) for i, x in enumerate(bags)])
    object.__setattr__(batch, "x", torch.cat(bags))
    output, start = model(batch), 0
    for i, x in enumerate(bags):
        n = len(x)
        for layer in model.layers:
            told, _ = attending(part(layer.gather), layer.latents.detach(), x, gated=True)
            x, _ = attending(part(layer.spread), x, told, gated=True)
        z, a = attending(part(model.pooling), model.seed.detach(), x, gated=False)
        torch.testing.assert_close(output.embedding[i], z[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(output.logits[i], model.head(z[0]), atol=1e-10, rtol=0)
        got = output.attention[start : start + n]
        torch.testing.assert_close(got, a[:, 0].T, atol=1e-10, rtol=0)
        start += n


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"latents": 0}, {"heads": 3}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ILRA(D, 2, **{"hidden": E, "heads": H, **wrong})
