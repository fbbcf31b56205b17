"""Objectives on an accelerator: the same numbers as on the CPU, and no waiting in a step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsi.objectives import OBJECTIVES
from wsi.objectives.ncmi import NCMI

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

C, E, B = 4, 64, 32
COUNTS = (40, 10, 25, 8)


def objective(name, **settings):
    torch.manual_seed(0)
    return OBJECTIVES.load(name)(C, E, COUNTS, **settings)


def outputs(device, n=B, seed=0):
    g = torch.Generator().manual_seed(seed)
    embedding, logits = torch.randn(n, E, generator=g), torch.randn(n, C, generator=g)
    parts = [tensor.to(device).requires_grad_() for tensor in (embedding, logits)]
    return SimpleNamespace(embedding=parts[0], logits=parts[1])


def losses(name, device, **settings):
    """Return loss and gradient of a batch, and probabilities after every hook."""
    model, output = objective(name, **settings).to(device), outputs(device)
    y = (torch.arange(B) % C).to(device)
    model.before_fit(iter([(output, y)]))
    loss = model(output, y)
    loss.backward()
    with torch.no_grad():
        model.after_step(output, y)
        model.eval()
        model.after_fit(iter([(output, y)]), iter([(outputs(device, 12, 1), y[:12])]))
    wanted = output.embedding if model.wants == "embedding" else output.logits
    p = model.probabilities(outputs(device, 9, 2)).detach()
    return loss.item(), wanted.grad.cpu().numpy(), p.cpu().numpy()


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_loss_gradient_and_probabilities_equal_those_of_the_cpu(name):
    torch.backends.cuda.matmul.allow_tf32 = True  # as many scripts set it
    try:
        here, there = losses(name, "cpu"), losses(name, "cuda")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    # Products of weights and features may run in TF32, which has 10 bits.
    assert there[0] == pytest.approx(here[0], rel=5e-3)
    np.testing.assert_allclose(there[1], here[1], atol=5e-3 * np.abs(here[1]).max())
    np.testing.assert_allclose(there[2], here[2], atol=2e-2)


@pytest.mark.parametrize("centroids", ["fixed", "class_mean"])
def test_a_step_never_waits_for_the_device(centroids):
    model, output = objective("ncmi", centroids=centroids).to("cuda"), outputs("cuda")
    y = (torch.arange(B) % C).to("cuda")
    model(output, y).backward()  # what is made once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(output, y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_autocast_leaves_the_loss_as_it_is():
    model = NCMI(C, E, COUNTS).to("cuda")
    output, y = outputs("cuda"), (torch.arange(B) % C).to("cuda")
    plain = model(output, y).item()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert model(output, y).item() == pytest.approx(plain, rel=1e-6)


def test_small_bags_in_one_matrix_equal_bags_one_by_one():
    from wsi.aggregators.abmil import ABMIL
    from wsi.data import pack

    rng = np.random.default_rng(0)
    bags = [rng.standard_normal((n, 16)).astype(np.float32) for n in (1, 3, 40, 7)]
    model = ABMIL(16, C, hidden=32, heads=2).to("cuda").eval()
    packed = pack([(x, 0, str(i), None) for i, x in enumerate(bags)]).to("cuda")
    alone = [model(pack([(x, 0, "a", None)]).to("cuda")).logits for x in bags]
    torch.testing.assert_close(model(packed).logits, torch.cat(alone), rtol=1e-5, atol=1e-5)
