"""Gradients of every objective against finite differences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from wsi.objectives import OBJECTIVES

C, E, B = 3, 5, 7
COUNTS = (40, 10, 25)
Y = torch.tensor([0, 1, 2, 0, 1, 0, 0])


def outputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = [torch.randn(B, k, generator=g, dtype=torch.float64) for k in (E, C)]
    return SimpleNamespace(embedding=draw[0], logits=draw[1])


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_gradients_of_inputs_and_parameters_match_finite_differences(name):
    torch.manual_seed(0)
    objective = OBJECTIVES.load(name)(C, E, COUNTS).double()
    objective.after_step(outputs(seed=1), Y)  # states that are not at their start
    parameters = dict(objective.named_parameters())
    names = list(parameters)

    def loss(embedding, logits, *values):
        output = SimpleNamespace(embedding=embedding, logits=logits)
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(objective, given, (output, Y))

    output = outputs()
    inputs = [output.embedding, output.logits, *(p.detach() for p in parameters.values())]
    wanted = [x.clone().requires_grad_() for x in inputs]
    used = 0 if objective.wants == "embedding" else 1
    (gradient,) = torch.autograd.grad(loss(*wanted), wanted[used])
    assert gradient.abs().max() > 1e-6
    assert torch.autograd.gradcheck(loss, wanted, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)
