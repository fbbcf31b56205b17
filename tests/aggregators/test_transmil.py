"""TransMIL against its equations, written out per bag with dense matrices and a dense image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import conv2d, cross_entropy, layer_norm

from wsi.aggregators.transmil import TransMIL
from wsi.data import pack
from wsi.errors import BagMismatchError, ConfigError

D, E, H = 5, 8, 2


def made(**settings):
    torch.manual_seed(0)
    model = TransMIL(D, 3, hidden=E, heads=H, **settings).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def bag(n, seed=0, side=12):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(side * side)[:n]
    return rng.normal(size=(n, D)), np.stack([cells % side, cells // side], 1)


def packed(some):
    batch = pack([(x, None, f"s{i}", xy0) for i, (x, xy0) in enumerate(some)])
    object.__setattr__(batch, "x", torch.from_numpy(np.concatenate([x for x, _ in some])))
    return batch


def attended(w, name, t):
    """Return (attention output, weights (H, n, n)) with the whole matrix laid out."""
    q = t @ w[f"{name}.query.weight"].T + w[f"{name}.query.bias"]
    k, v = (t @ w[f"{name}.key_value.weight"].T + w[f"{name}.key_value.bias"]).split(E, 1)
    q, k, v = (m.view(len(t), H, E // H).transpose(0, 1) for m in (q, k, v))
    a = (q @ k.mT / (E // H) ** 0.5).softmax(-1)
    mixed = (a @ v).transpose(0, 1).reshape(len(t), E)
    return mixed @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"], a


def paper(model, x, cells):
    """Return (embedding, logits, attention) of one bag of distinct cells."""
    w = dict(model.state_dict())
    h = (torch.from_numpy(x) @ w["embed.0.weight"].T + w["embed.0.bias"]).relu()
    t = torch.cat([w["class_token"], h])

    def norm(i, u):
        return layer_norm(u, (E,), w[f"norms.{i}.weight"], w[f"norms.{i}.bias"])

    t = t + attended(w, "first", norm(0, t))[0]
    if cells is not None:
        image = torch.zeros(1, E, 30, 30, dtype=t.dtype)
        at = torch.from_numpy(cells + 5)
        image[0, :, at[:, 1], at[:, 0]] = t[1:].T
        total = image + w["position.bias"][:, None, None]
        for i, size in enumerate((7, 5, 3)):
            kernel = w[f"position.kernels.{i}"].T.reshape(E, 1, size, size)
            total = total + conv2d(image, kernel, padding=size // 2, groups=E)
        t = torch.cat([t[:1], total[0, :, at[:, 1], at[:, 0]].T])
    seen, a = attended(w, "last", norm(1, t))
    z = norm(2, t + seen)[0]
    to_tiles = a[:, 0, 1:]
    logits = z @ w["head.weight"].T + w["head.bias"]
    return z, logits, (to_tiles / to_tiles.sum(1, keepdim=True)).T


@pytest.mark.parametrize("position", ["grid", "none"])
def test_output_is_the_papers_equations_on_the_true_grid(position):
    model = made(position=position)
    some = [bag(n, n, side) for n, side in ((4, 2), (60, 12), (110, 12))]
    output = model(packed([(x, 458 * cells + 19) for x, cells in some]))
    start = 0
    for i, (x, cells) in enumerate(some):
        z, logits, a = paper(model, x, cells if position == "grid" else None)
        torch.testing.assert_close(output.embedding[i], z, atol=1e-9, rtol=0)
        torch.testing.assert_close(output.logits[i], logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(output.attention[start : start + len(x)], a, atol=1e-9, rtol=0)
        start += len(x)


def test_one_tile_is_on_its_own_grid():
    x, _ = bag(1)
    z, *_ = paper(made(), x, np.zeros((1, 2), int))
    torch.testing.assert_close(made()(packed([(x, np.array([[9, 9]]))])).embedding[0], z)


def test_neighbours_count_and_tiles_out_of_reach_do_not():
    model = made()
    with torch.no_grad():  # positions alone, no attention
        model.first.out.weight.zero_()
        model.first.out.bias.zero_()
    x, cells = bag(30, side=6)

    def moved(far):
        there = cells.copy()
        there[-1] = far
        return model(packed([(x, there * 256)])).embedding[0]

    # A cell beyond the reach of all kernels, wherever it lies, is the same nowhere.
    torch.testing.assert_close(moved((20, 20)), moved((31, 9)))
    assert (moved((20, 20)) - moved((6, 3))).abs().max() > 1e-3


def test_tiles_of_one_cell_count_as_their_mean_in_any_order():
    model = made()
    x, cells = bag(20)
    twice, places = np.concatenate([x, x[:3] + 1]), np.concatenate([cells, cells[:3]]) * 256
    order = np.random.default_rng(1).permutation(23)
    first = model(packed([(twice, places)])).logits
    torch.testing.assert_close(model(packed([(twice[order], places[order])])).logits, first)


def test_many_landmarks_are_exact_and_few_ignore_order_and_packing():
    x, cells = bag(100)
    exact = made()(packed([(x, cells)])).logits
    all_of_them = made(attention="nystrom", landmarks=100)(packed([(x, cells)])).logits
    torch.testing.assert_close(all_of_them, exact)
    model = made(attention="nystrom", landmarks=7)
    few = model(packed([bag(50, 3), (x, cells), bag(2, 4)])).logits[1]
    assert (few - exact[0]).abs().max() > 1e-6
    order = np.random.default_rng(0).permutation(100)
    again = model(packed([(x[order], cells[order])])).logits[0]
    torch.testing.assert_close(again, few, atol=1e-9, rtol=0)


def test_tiles_without_coordinates_are_named_with_what_to_do():
    with pytest.raises(BagMismatchError, match=r"^s0: .*transmil.*set position to 'none'"):
        made()(packed([(bag(4)[0], None)]))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="heads=3"):
        TransMIL(D, 2, hidden=8, heads=3)
    with pytest.raises(ConfigError, match="landmarks=0"):
        TransMIL(D, 2, attention="nystrom", landmarks=0)


def two_marks(bags, seed):
    """Return bags of 25 tiles, two of them marked: neighbours on the grid in every second bag."""
    rng, places = np.random.default_rng(seed), np.stack(np.divmod(np.arange(25), 5)[::-1], 1)
    made = []
    while len(made) < bags:
        a, b = rng.choice(25, 2, replace=False)
        touching = np.abs(places[a] - places[b]).max() == 1
        if touching != len(made) % 2:
            continue
        x = rng.normal(size=(25, 3)).astype(np.float32) * 0.3
        x[[a, b], 0] += 3
        order = rng.permutation(25)
        made.append((x[order], int(touching), str(len(made)), places[order] * 256))
    return made


@pytest.mark.slow
def test_whether_tiles_touch_can_be_learned_from_the_grid_and_not_without_it():
    train, test = two_marks(200, 0), pack(two_marks(200, 1))
    auc = {}
    for position in ("grid", "none"):
        torch.manual_seed(0)
        model = TransMIL(3, 2, hidden=16, heads=2, dropout=0.0, position=position)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        draws = np.random.default_rng(0)
        for _ in range(120):
            batch = pack([train[i] for i in draws.choice(200, 16, replace=False)])
            optimizer.zero_grad()
            cross_entropy(model(batch).logits, batch.y).backward()
            optimizer.step()
        with torch.no_grad():
            logits = model.eval()(test).logits
        auc[position] = roc_auc_score(test.y, logits[:, 1] - logits[:, 0])
    assert auc["grid"] > 0.95
    assert auc["none"] < 0.6
