"""One optimiser step, computed in as many pieces as memory asks for, with one and the same update.

A step is `fit.bags_per_step` bags. Their embeddings are computed piece by piece and joined, the
objective sees the whole step, and one backward pass goes through all pieces. So the update does
not depend on how a step is cut, for objectives that compare bags of a step, too. Of a step with
more than `fit.tiles_per_batch` tiles the early pieces are computed again when their turn in the
backward pass comes, with the random numbers they had (gradient checkpointing).

Nothing here reads a number back from the device, so an accelerator never waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from wsi.aggregators.base import Output
from wsi.data import BagBatch, BagDataset, training_steps
from wsi.errors import TrainingError
from wsi.specs import FitSpec
from wsi.training.model import Model

_HOST_PIECE = 4096  # tiles; of larger arrays a processor gets every page anew from the system


def steps_of(
    train: BagDataset, spec: FitSpec, device: torch.device, seed: int, epoch: int
) -> Iterator[tuple[BagBatch, ...]]:
    """Yield the steps of one epoch, each as pieces on the host."""
    on_host = device.type == "cpu"
    most = min(spec.tiles_per_batch, _HOST_PIECE) if on_host else spec.tiles_per_batch
    steps = training_steps(
        train,
        bags_per_step=spec.bags_per_step,
        max_tiles=spec.max_tiles,
        most_tiles=most,
        seed=seed,
        epoch=epoch,
    )
    for pieces in steps:
        yield pieces if on_host else tuple(piece.pinned() for piece in pieces)


def take_step(
    fabric: Fabric,
    model: Model,
    optimizer: torch.optim.Optimizer,
    pieces: Sequence[BagBatch],
    spec: FitSpec,
) -> Tensor:
    """Return the loss and the gradient norm before clipping (2,), after one optimiser step.

    Args:
        fabric: decides device and precision.
        model: in training mode.
        optimizer: of its parameters.
        pieces: the labelled bags of the step.
        spec: with clip and tiles_per_batch.
    """
    y = torch.cat([labels_of(piece) for piece in pieces])
    if fabric.device.type != "cpu":
        y = y.pin_memory().to(fabric.device, non_blocking=True)
    output = joined_output(fabric, model, pieces, spec.tiles_per_batch)
    loss = model.objective(output, y)
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    optimizer.zero_grad()
    fabric.backward(loss)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clipped(held, spec.clip)
    optimizer.step()
    model.objective.after_step(_detached(output), y)
    return torch.stack([loss.detach(), norm])


def joined_output(
    fabric: Fabric, model: Model, pieces: Sequence[BagBatch], most_tiles: int
) -> Output:
    """Return the output of all bags of a step, without attention and evidence.

    What the backward pass needs is kept for the last `most_tiles` tiles at most, and for one piece
    at least: the pass begins with them. Earlier pieces are computed again in it.
    """

    def run(_: Tensor, piece: BagBatch) -> Output:
        # One autocast for each piece: in a common one the weights' gradients would be summed over
        # pieces in the narrow type.
        with fabric.autocast():
            return model(piece.to(fabric.device))

    # The random state is kept of the device of a tensor that is handed over, so one must be.
    token = torch.empty(0, device=fabric.device)
    outputs, left = [], sum(len(piece.x) for piece in pieces)
    for number, piece in enumerate(pieces, start=1):
        if left <= most_tiles or number == len(pieces):
            outputs.append(run(token, piece))
        else:
            outputs.append(checkpoint(run, token, piece, use_reentrant=False))
        left -= len(piece.x)
    return _joined(outputs)


@torch.no_grad()
def clipped(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Return the norm of the gradient, which is then brought down to `limit` where it is above."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    # On the host looking costs nothing, and an idle product as much as half of AdamW.
    if limit is not None and (norm.device.type != "cpu" or norm > limit):
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def labels_of(batch: BagBatch) -> Tensor:
    """Return the class indices (B,) of a batch, or raise TrainingError where it has none."""
    if batch.y is None:
        raise TrainingError(f"{', '.join(batch.slide_ids)}: no label to train on — give labels")
    return batch.y


def _joined(outputs: Sequence[Output]) -> Output:
    """Return one output; auxiliary losses, which are means over bags, weighted by bags."""
    if len(outputs) == 1:
        return outputs[0]
    logits = [output.logits for output in outputs if output.logits is not None]
    bags = [len(output.embedding) for output in outputs]
    parts = [
        output.aux_loss * (n / sum(bags))
        for output, n in zip(outputs, bags, strict=True)
        if output.aux_loss is not None
    ]
    return Output(
        embedding=torch.cat([output.embedding for output in outputs]),
        logits=torch.cat(logits) if logits else None,
        aux_loss=torch.stack(parts).sum() if parts else None,
    )


def _detached(output: Output) -> Output:
    logits = None if output.logits is None else output.logits.detach()
    return Output(embedding=output.embedding.detach(), logits=logits)
