"""Attention within packed bags against matrices written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsi.aggregators import attention
from wsi.aggregators.attention import Landmarks, SelfAttention, attend, nystrom, pool_by_query

H, E = 2, 6


def drawn(n, seed, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, E, generator=g, dtype=torch.float64)).to(dtype)


def naive(q, k, v, heads=H):
    """Return softmax(q k^T / sqrt(d)) v of one bag."""
    d = q.shape[1] // heads
    parts = []
    for h in range(heads):
        cut = slice(h * d, (h + 1) * d)
        parts.append(softmax(q[:, cut] @ k[:, cut].T / np.sqrt(d), axis=1) @ v[:, cut])
    return np.concatenate(parts, axis=1)


def bags_of(sizes, *arrays):
    ends = np.cumsum(sizes)[:-1]
    return zip(*(np.split(a.numpy(), ends) for a in arrays), strict=True)


def test_each_bag_attends_to_itself_alone():
    sizes = [1, 5, 40, 2]
    q, k, v = (drawn(sum(sizes), seed) for seed in range(3))
    expected = np.concatenate([naive(*bag) for bag in bags_of(sizes, q, k, v)])
    np.testing.assert_allclose(attend(q, k, v, sizes, sizes, H), expected, atol=1e-12)


def test_queries_and_keys_may_differ_in_number():
    q_sizes, k_sizes = [2, 2, 2], [1, 7, 30]
    q, k, v = drawn(6, 0), drawn(38, 1), drawn(38, 2)
    bags = zip(np.split(q.numpy(), 3), bags_of(k_sizes, k, v), strict=True)
    expected = np.concatenate([naive(a, *keys_values) for a, keys_values in bags])
    np.testing.assert_allclose(attend(q, k, v, q_sizes, k_sizes, H), expected, atol=1e-12)


def test_one_query_per_bag_gathers_what_attention_gives():
    sizes = [1, 7, 30]
    q, k, v = drawn(3, 0), drawn(38, 1), drawn(38, 2)
    pooled, scores = pool_by_query(q, k, v, sizes, H)
    np.testing.assert_allclose(pooled, attend(q, k, v, [1, 1, 1], sizes, H), atol=1e-12)
    row = (q[1].view(H, -1)[:, None] * k[1:8].view(7, H, -1).transpose(0, 1)).sum(-1).T
    np.testing.assert_allclose(scores[1:8], row / np.sqrt(E // H), atol=1e-12)


def test_the_class_token_gets_the_row_of_whole_attention():
    torch.manual_seed(0)
    layer, sizes = SelfAttention(E, H).double(), [2, 9, 4]
    tokens = drawn(15, 3)
    row, weights = layer.of_class_token(tokens, sizes)
    whole = layer(tokens, sizes, None)
    np.testing.assert_allclose(row.detach(), whole[[0, 2, 11]].detach(), atol=1e-12)
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    x = tokens.numpy()[2:11]
    q = (x @ w["query.weight"].T + w["query.bias"])[0]
    k = (x @ w["key_value.weight"].T + w["key_value.bias"])[1:, :E]
    expected = np.stack(
        [softmax(k[:, c] @ q[c] / np.sqrt(3)) for c in (slice(0, 3), slice(3, 6))], axis=1
    )
    np.testing.assert_allclose(weights[1:9].detach(), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 32, 4])
@pytest.mark.parametrize("n", [1, 300])
def test_the_kernel_that_never_lays_out_n_by_n_takes_our_shapes(dtype, width, n):
    g = torch.Generator().manual_seed(0)
    both = torch.randn(n, 4 * width, generator=g).to(dtype).requires_grad_()
    k, v = both.chunk(2, dim=1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # it alone; others are errors
        out = attend(k, k, v, [n], [n], 2)
        out.float().sum().backward()
    assert both.grad.isfinite().all()
    a, b = k.detach().double().numpy(), v.detach().double().numpy()
    np.testing.assert_allclose(out.detach().double(), naive(a, a, b), atol=0.03)


def landmarks(n, count):
    return np.arange(n) * count // n


def naive_nystrom(q, k, v, of, steps=None):
    """Return the approximation of one bag, its pseudo-inverse exact or by `steps`."""
    d, parts = E // H, []
    for h in range(H):
        a, b, c = (m[:, h * d : (h + 1) * d] for m in (q, k, v))
        a_mean = np.stack([a[of == m].mean(0) for m in range(of.max() + 1)])
        b_mean = np.stack([b[of == m].mean(0) for m in range(of.max() + 1)])
        left, right = softmax(a @ b_mean.T / np.sqrt(d), 1), softmax(a_mean @ b.T / np.sqrt(d), 1)
        between = softmax(a_mean @ b_mean.T / np.sqrt(d), 1)
        if steps is None:
            inverse = np.linalg.pinv(between)
        else:
            inverse = between.T / (abs(between).sum(0).max() * abs(between).sum(1).max())
            eye = np.eye(len(between))
            for _ in range(steps):
                az = between @ inverse
                inverse = inverse @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
        parts.append(left @ inverse @ right @ c)
    return np.concatenate(parts, axis=1)


def test_landmarks_give_the_papers_formula_bag_by_bag():
    sizes, counts = [30, 9, 3], [5, 4, 3]
    q, k, v = (drawn(42, seed) for seed in range(3))
    of = [landmarks(n, m) for n, m in zip(sizes, counts, strict=True)]
    marks = Landmarks(torch.from_numpy(np.concatenate(of)), tuple(counts))
    got = np.split(nystrom(q, k, v, sizes, marks, H).numpy(), np.cumsum(sizes)[:-1])
    bags = list(bags_of(sizes, q, k, v))
    for i in (0, 1):
        np.testing.assert_allclose(got[i], naive_nystrom(*bags[i], of[i], steps=6), atol=1e-10)
    np.testing.assert_allclose(got[2], naive(*bags[2]), atol=1e-10)  # a landmark for each token


def test_landmarks_of_tokens_that_are_alike_lose_nothing():
    of = landmarks(60, 6)
    kinds, v = drawn(6, 1, scale=4.0), drawn(60, 2)
    q = kinds[of]
    got = nystrom(q, q, v, [60], Landmarks(torch.from_numpy(of), (6,)), H)
    np.testing.assert_allclose(got, naive(q.numpy(), q.numpy(), v.numpy()), atol=0.02)
    assert np.ptp(got.numpy(), axis=0).min() > 0.3


def test_gradients_are_those_of_finite_differences():
    sizes, marks = [4, 1], Landmarks(torch.tensor([0, 1, 1, 0, 0]), (2, 1))
    inputs = tuple(drawn(5, seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda *x: nystrom(*x, sizes, marks, H), inputs, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, sizes, sizes, H), inputs, fast_mode=True)


def test_the_pseudo_inverse_is_not_taken_in_half_precision():
    sizes, marks = [200], Landmarks(torch.from_numpy(landmarks(200, 16)), (16,))
    q, k, v = (drawn(200, seed, torch.float32) for seed in range(3))
    full = nystrom(q, k, v, sizes, marks, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nystrom(q.bfloat16(), k.bfloat16(), v.bfloat16(), sizes, marks, H)
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(half.float(), full, atol=0.1)


def test_class_tokens_go_before_their_tiles_and_off_again():
    tiles, token = drawn(5, 0), drawn(1, 1)
    tokens = attention.with_class_token(tiles, token, [2, 3])
    assert torch.equal(tokens[attention.starts([3, 4])], token.expand(2, -1))
    assert torch.equal(attention.without_first(tokens, [3, 4]), tiles)
