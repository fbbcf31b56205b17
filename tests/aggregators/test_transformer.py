"""The transformer against torch's own encoder layers with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from wsi.aggregators.grid import sincos, tile_positions
from wsi.aggregators.transformer import Transformer
from wsi.data import pack
from wsi.errors import BagMismatchError, ConfigError

D, E, H = 5, 8, 2


def made(**settings):
    torch.manual_seed(0)
    model = Transformer(D, 3, hidden=E, heads=H, **settings).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases and norms too, so that each is seen to count
    return model


def bags(sizes=(1, 4, 30)):
    rng = np.random.default_rng(0)
    cells = [rng.permutation(400)[:n] for n in sizes]
    return [
        (rng.normal(size=(n, D)), np.stack([c % 20, c // 20], 1) * 256)
        for n, c in zip(sizes, cells, strict=True)
    ]


def packed(some):
    batch = pack([(x, None, str(i), xy0) for i, (x, xy0) in enumerate(some)])
    object.__setattr__(batch, "x", torch.from_numpy(np.concatenate([x for x, _ in some])))
    return batch


def torchs(layer):
    """Return torch's layer with the weights of ours."""
    theirs = nn.TransformerEncoderLayer(
        E, H, 2 * E, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    ours = layer.state_dict()
    joined = {
        "self_attn.in_proj_" + kind: torch.cat(
            [ours[f"attention.query.{kind}"], ours[f"attention.key_value.{kind}"]]
        )
        for kind in ("weight", "bias")
    }
    names = {
        "attention.out": "self_attn.out_proj",
        "feedforward.0": "linear1",
        "feedforward.2": "linear2",
        "attention_norm": "norm1",
        "feedforward_norm": "norm2",
    }
    for old, new in names.items():
        joined |= {f"{new}.{kind}": ours[f"{old}.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(joined)
    return theirs


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("layers", [1, 3])
def test_output_is_torchs_encoder(pooling, layers):
    model = made(pooling=pooling, layers=layers)
    output = model(packed(bags()))
    for i, (x, xy0) in enumerate(bags()):
        h = model.embed(torch.from_numpy(x)) + sincos([tile_positions(xy0.astype(float))], E)
        tokens = h if pooling == "mean" else torch.cat([model.class_token, h])
        for layer in (*model.inner, model.last):
            tokens = torchs(layer).train()(tokens[None])[0]  # in evaluation torch takes a shortcut
        tokens = model.norm(tokens)
        z = tokens.mean(0) if pooling == "mean" else tokens[0]
        torch.testing.assert_close(output.embedding[i], z, atol=1e-10, rtol=0)
        torch.testing.assert_close(output.logits[i], model.head(z), atol=1e-10, rtol=0)


def test_attention_is_that_of_the_class_token_in_the_last_layer():
    model = made(layers=2, position="none")
    (x, _) = bags((1, 4, 30))[2]
    tokens = torch.cat([model.class_token, model.embed(torch.from_numpy(x))])
    tokens = model.last.attention_norm(torchs(model.inner[0]).train()(tokens[None])[0])
    q = model.last.attention.query(tokens)[0].detach().numpy()
    k = model.last.attention.key_value(tokens)[1:, :E].detach().numpy()
    expected = np.stack([softmax(k[:, c] @ q[c] / 2) for c in (slice(0, 4), slice(4, 8))], 1)
    got = model(packed([(x, None)])).attention
    np.testing.assert_allclose(got.detach(), expected, atol=1e-10)


def test_mean_pooling_has_no_attention_to_show():
    assert made(pooling="mean")(packed(bags())).attention is None


def test_landmarks_for_all_tiles_are_exact_attention():
    exact, by_landmarks = made(), made(attention="nystrom", landmarks=30)
    torch.testing.assert_close(by_landmarks(packed(bags())).logits, exact(packed(bags())).logits)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("position", ["sincos", "none"])
def test_fewer_landmarks_keep_packing_and_order_out_of_the_result(pooling, position):
    model = made(attention="nystrom", landmarks=5, pooling=pooling, position=position)
    some = bags((1, 40, 9, 30))
    if position == "none":
        some = [(x, None) for x, _ in some]
    together = model(packed(some)).logits
    for i, (x, xy0) in enumerate(some):
        order = np.random.default_rng(i).permutation(len(x))
        moved = (x[order], None if xy0 is None else xy0[order])
        torch.testing.assert_close(model(packed([moved])).logits[0], together[i], atol=1e-9, rtol=0)


def test_tiles_without_coordinates_are_named_with_what_to_do():
    with pytest.raises(BagMismatchError, match=r"^0: .*transformer.*position to 'none'"):
        made()(packed([(x, None) for x, _ in bags()]))


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"heads": 3}, {"hidden": 6}, {"feedforward": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Transformer(D, 2, **{"hidden": E, "heads": H, **wrong})
