"""What trained models say of every tile of a bag, and whether that is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ExplainError
from wsi.explain.evidence import embeddings_without, logits_without, tile_evidence
from wsi.explain.infocam import pmi_evidence, tile_pmi

if TYPE_CHECKING:
    from torch import Tensor

    from wsi.aggregators.base import Output, TileTerms
    from wsi.data import BagBatch
    from wsi.training.model import Model

Float64 = NDArray[np.float64]

EXACT_WITHIN = 1e-4
"""How far scores may be from a linear head, relative to their size, to be called those of it."""

_ROWS = 4096  # embeddings scored at once
_STEPS = 64  # on the way from an average bag, at the nodes of Gauss and Legendre
_PROBES = 64  # tiles on which linearity is checked


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model, or the mean of several, says of the N tiles of a bag for each of C classes.

    Attributes:
        probabilities: (C,) of the bag.
        attention: (N,), the mean over heads.
        evidence: (N, C), in nats; where exact, it sums over tiles to the bag's logits.
        pmi_evidence: (N, C), evidence with the class prior taken out; contrasts are taken of it.
        pmi: (N, C) of each tile alone; None where probabilities are meant under no known prior.
        drop: (N, C), how far the bag's scores fall without the tile, up to a term that all
            classes share; NaN for a bag of one tile, and where a model tells its evidence itself,
            as it would have to be run once per tile.
        exact: whether tiles sum to the logits; otherwise `evidence` and `pmi_evidence` are
            integrated gradients of the log-probabilities, from those of an average bag to those
            of this one. `pmi` and `drop` are exact either way.
        gap: largest difference between the sum over tiles and what it stands for, in nats:
            the logits as predicted, or the change of the log-probabilities, up to a shared term.
    """

    probabilities: Float64
    attention: Float64
    evidence: Float64
    pmi_evidence: Float64
    pmi: Float64 | None
    drop: Float64
    exact: bool
    gap: float


def model_evidence(
    model: Model,
    batch: BagBatch,
    device: str = "cpu",
    baseline: NDArray[np.floating] | None = None,
) -> Evidence:
    """Return what `model` says of the tiles of the one bag in `batch`.

    Args:
        baseline: embedding (E,) of an average bag, such as the mean of the training bags; only
            scores that are not linear are held against it. The origin when not given.

    Raises:
        ExplainError: the model's embedding is no weighted sum of tiles, and it tells no evidence
            of which its decision is made.
    """
    import torch

    model = model.to(device).eval()
    batch = batch.to(device)
    with torch.no_grad():
        terms, output = model.tile_terms(batch), model(batch)
    if terms is None:
        return _told(model, batch, output)
    head = _linear_head(model, terms, output)
    if head:
        return _linear(model, terms, output, *head)
    start = np.zeros(terms.h.shape[1]) if baseline is None else np.asarray(baseline, np.float64)
    return _integrated(model, terms, output, start)


def mean_evidence(parts: Sequence[Evidence]) -> Evidence:
    """Return the mean of what several models say of the same tiles.

    Exact evidence stays exact: it sums to the mean of the models' logits.
    """
    values: dict[str, Any] = {
        f.name: np.mean([getattr(part, f.name) for part in parts], axis=0)
        for f in fields(Evidence)
        if f.name not in ("pmi", "exact", "gap")
    }
    pmi = [part.pmi for part in parts if part.pmi is not None]
    return Evidence(
        **values,
        pmi=np.mean(pmi, axis=0) if len(pmi) == len(parts) else None,
        exact=all(part.exact for part in parts),
        gap=max(part.gap for part in parts),
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """A linear head (C, E), (C,), and what the rule adds to its logits (C,)."""

    w: Float64
    b: Float64
    offset: Float64


def _linear_head(
    model: Model, terms: TileTerms, output: Output
) -> tuple[_Head, NDArray[np.float64]] | None:
    """Return the head whose logits decide, and these logits as predicted; None without one.

    Believed only where the scores are its logits, up to a constant per class and a term that all
    classes share, on the bag and on tiles.
    """
    given = model.objective.linear_head()
    if given is None and model.objective.rule == "own" and output.logits is not None:
        given = model.aggregator.linear_head()
    if given is None:
        return None
    w, b = (_numpy(part) for part in given)
    rows = np.unique(np.linspace(0, len(terms.h) - 1, _PROBES).astype(int))
    z = _concatenated(output.embedding, terms.h[rows.tolist()])
    logits, scores = _numpy(z) @ w.T + b, _scores(model, z)
    offset = _offset(logits, scores)
    if offset is None:
        return None
    predicted = _numpy(output.logits)[0] if output.logits is not None else logits[0]
    if model.objective.linear_head() is not None:
        predicted = logits[0]
    return _Head(w, b, offset), predicted


def _told(model: Model, batch: BagBatch, output: Output) -> Evidence:
    """Return the evidence that a model gives itself, where its logits decide."""
    name = model.card.aggregator
    if output.evidence is None or output.logits is None:
        raise ExplainError(
            f"aggregator '{name}' does not sum over tiles, so no share of a tile can be told — "
            "train abmil, mean or additive"
        )
    if model.objective.linear_head() is not None:
        raise _undecided(name)
    alone = [_single_tiles(model, batch, start) for start in range(0, len(batch.x), _ROWS)]
    logits, scores = (np.concatenate(parts) for parts in zip(*alone, strict=True))
    bag, bag_scores = _numpy(output.logits), _objective_scores(model, output)
    offset = _offset(np.concatenate([bag, logits]), np.concatenate([bag_scores, scores]))
    if offset is None:
        raise _undecided(name)
    e = _numpy(output.evidence)
    shares = output.attention
    a = np.full(len(e), 1 / len(e)) if shares is None else _numpy(shares).mean(axis=1)
    log_prior, known = _log_prior(model)
    return Evidence(
        probabilities=_numpy(model.probabilities(output))[0],
        attention=a,
        evidence=e,
        pmi_evidence=pmi_evidence(e, a, log_prior, offset if known else 0.0),
        pmi=tile_pmi(scores, log_prior) if known else None,
        drop=np.full(e.shape, np.nan),
        exact=True,
        gap=float(np.abs(e.sum(axis=0) - bag[0]).max()),
    )


def _undecided(name: str) -> ExplainError:
    return ExplainError(
        f"aggregator '{name}' tells what tiles add to its logits, and it is not these that "
        "decide — train with objective=ce and objective.predict=own, or aggregator=abmil"
    )


def _single_tiles(model: Model, batch: BagBatch, start: int) -> tuple[Float64, Float64]:
    """Return logits and scores (n, C) of bags that hold one tile each, from tile `start` on."""
    import torch

    x = batch.x[start : start + _ROWS]
    single = replace(
        batch,
        x=x,
        offsets=torch.arange(len(x) + 1),
        slide_ids=batch.slide_ids * len(x),
        y=None,
        xy0=None if batch.xy0 is None else batch.xy0[start : start + _ROWS],
    )
    with torch.no_grad():
        output = model(single)
    if output.logits is None:
        raise ExplainError(f"{batch.slide_ids[0]}: the model gives no logits of single tiles")
    return _numpy(output.logits), _objective_scores(model, output)


def _objective_scores(model: Model, output: Output) -> Float64:
    import torch

    with torch.no_grad():
        return _numpy(model.objective.scores(output, model.objective.rule))


def _offset(logits: Float64, scores: Float64) -> Float64 | None:
    """Return (C,): what the rule adds to logits (n, C), up to a term that classes share.

    None where the scores are not the logits up to such a constant and term.
    """
    difference = scores - logits
    difference -= difference.mean(axis=1, keepdims=True)
    size = 1 + np.abs(scores - scores.mean(axis=1, keepdims=True)).max()
    near = np.abs(difference - difference[0]).max() <= EXACT_WITHIN * size
    return difference[0] if near else None


def _linear(
    model: Model, terms: TileTerms, output: Output, head: _Head, logits: Float64
) -> Evidence:
    h, a = _numpy(terms.h, keep=True), _numpy(terms.attention)
    e = tile_evidence(h, a, head.w, head.b)
    log_prior, known = _log_prior(model)
    attention = a.mean(axis=1)
    return Evidence(
        probabilities=_numpy(model.probabilities(output))[0],
        attention=attention,
        evidence=e,
        pmi_evidence=pmi_evidence(e, attention, log_prior, head.offset if known else 0.0),
        pmi=_pmi(model, terms, log_prior) if known else None,
        drop=logits - logits_without(h, a, head.w, head.b),
        exact=True,
        gap=float(np.abs(e.sum(axis=0) - logits).max()),
    )


def _integrated(model: Model, terms: TileTerms, output: Output, start: Float64) -> Evidence:
    """Return integrated gradients of the log-probabilities, through the exact sum over tiles.

    Plain gradient times input will not do: where scores depend on the direction of the embedding
    alone, the gradient is at right angles to it, and tiles would sum to nothing.

    Source: Sundararajan et al. 2017 (arXiv 1703.01365), eq. 1.
    """
    h, a = _numpy(terms.h, keep=True), _numpy(terms.attention)
    w = _mean_gradient(model, output.embedding[0], start)
    e = tile_evidence(h - start, a, w, np.zeros(len(w)))
    log_p = _numpy(model.probabilities(output).log())[0]
    zero = np.zeros(len(log_p))
    before = tile_pmi(_scores(model, _like(start[None], output.embedding)), zero)[0]
    missing = log_p - before - e.sum(axis=0)
    log_prior, known = _log_prior(model)
    return Evidence(
        probabilities=np.exp(log_p),
        attention=a.mean(axis=1),
        evidence=e,
        pmi_evidence=e,  # an average bag is what a prior would stand for
        pmi=_pmi(model, terms, log_prior) if known else None,
        drop=_drop(model, h, a, log_p),
        exact=False,
        gap=float(np.abs(missing - missing.mean()).max()),
    )


def _mean_gradient(model: Model, z: Tensor, start: Float64) -> Float64:
    """Return (C, E): the gradient of the log-probabilities, averaged on the way to `z`."""
    import torch

    nodes, weights = np.polynomial.legendre.leggauss(_STEPS)
    z0, t = _like(start, z), _like((nodes[:, None] + 1) / 2, z)
    path = (z0 + t * (z - z0)).requires_grad_(True)
    log_p = (_like(weights[:, None] / 2, z) * model.scores_of(path).log_softmax(-1)).sum(0)
    rows = [torch.autograd.grad(value, path, retain_graph=True)[0].sum(0) for value in log_p]
    return _numpy(torch.stack(rows))


def _like(values: Float64, tensor: Tensor) -> Tensor:
    import torch

    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)


def _drop(model: Model, h: NDArray[Any], a: Float64, log_p: Float64) -> Float64:
    if len(h) == 1:
        return np.full((1, len(log_p)), np.nan)
    import torch

    without = torch.as_tensor(embeddings_without(h, a), dtype=torch.float32)
    device = model.feature_mean.device
    scores = np.concatenate([_scores(model, rows.to(device)) for rows in without.split(_ROWS)])
    return log_p - tile_pmi(scores, np.zeros(len(log_p)))


def _pmi(model: Model, terms: TileTerms, log_prior: Float64) -> Float64:
    scores = [_scores(model, rows) for rows in terms.h.split(_ROWS)]
    return tile_pmi(np.concatenate(scores), log_prior)


def _log_prior(model: Model) -> tuple[Float64, bool]:
    """Return log pi (C,) under which the probabilities are meant, and whether there is one."""
    objective = model.objective
    C = objective.n_classes
    uniform = np.full(C, -np.log(C))
    prior = objective.predicts_prior
    if prior == "training":
        counts = _numpy(objective.class_counts)
        return np.log(counts / counts.sum()), True
    return uniform, prior is not None


def _scores(model: Model, z: Tensor) -> Float64:
    import torch

    with torch.no_grad():
        return _numpy(model.scores_of(z))


def _concatenated(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts)


def _numpy(tensor: Tensor, *, keep: bool = False) -> NDArray[Any]:
    """Return an array, float64 unless its type is to be kept."""
    tensor = tensor.detach().cpu()
    return (tensor if keep else tensor.double()).numpy()
