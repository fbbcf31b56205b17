"""The training loop, to be read from top to bottom.

It never asks which aggregator or objective it has. The validation part alone picks the
checkpoint; test slides do not come here at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

import wsi
from wsi.aggregators.base import Output
from wsi.data import BagDataset
from wsi.errors import TrainingError
from wsi.files import sha256_json
from wsi.findings import few
from wsi.objectives.temperature import fit_temperature, mean_nll
from wsi.specs import FitSpec
from wsi.training.alarms import alarms
from wsi.training.average import WeightAverage
from wsi.training.figures import as_one, epoch_figures, prediction_figures
from wsi.training.model import Model
from wsi.training.optimiser import adamw, learning_rate, set_rate
from wsi.training.precision import Precision, fabric_of, precision_of
from wsi.training.predict import evaluated
from wsi.training.seeds import seeded
from wsi.training.state import FitState, RandomState
from wsi.training.step import labels_of, steps_of, take_step

Score = Callable[[np.ndarray, np.ndarray], float]
"""Classes y (n,) and probabilities p (n, C) to a figure; higher is better."""

_EVALUATED_TILES = 4096  # packed into one batch without gradient
_TIE_RANGE = (0.05, 20.0)  # temperatures tried on probabilities when two epochs score the same


@dataclass(frozen=True)
class FitResult:
    """What training left behind, beside the model.

    Attributes:
        history: one row per epoch: epoch, train_loss, val_loss, monitor, lr, grad_norm (largest
            of the epoch, before clipping), figures, alarms, seconds. val_loss and monitor are
            None without a validation part. figures: what the objective logs of validation bags,
            of training bags without validation; with it, bags, accuracy, and bags and predictions
            of each class. alarms: see `wsi.training.alarms`.
        best_epoch: the epoch whose weights the model has.
        monitor: the validation figure of that epoch, or None.
        precision: in which matrices were multiplied, once `auto` is settled.
    """

    history: tuple[dict[str, Any], ...]
    best_epoch: int
    monitor: float | None
    precision: Precision = "fp32"


def fit(
    model: Model,
    train: BagDataset,
    val: BagDataset | None,
    spec: FitSpec,
    *,
    seed: int,
    score: Score,
    device: str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    state: FitState | None = None,
) -> FitResult:
    """Train `model` in place and return its history.

    Features are first standardised by the training tiles, unless the settings say otherwise.
    After each epoch the validation part is scored with all tiles. The best epoch's weights are
    put back, ties going to the smaller temperature-fitted NLL and then to the earlier epoch;
    without validation the last epoch stands. Then the objective settles its decision rule.

    Args:
        model: from `build`.
        train: labelled training bags.
        val: labelled validation bags, or None.
        spec: settings of the loop.
        seed: of the order of bags, tile draws and dropout.
        score: what spec.monitor means; not used with monitor=loss, which is the NLL.
        device: `cpu`, `cuda` or `cuda:<index>`.
        on_epoch: called with each new row of the history.
        state: where to keep the state after each epoch, and to go on from when it is there. On a
            CPU the result is, to the last bit, that of a fit that was never ended.

    Raises:
        TrainingError: a data set is empty or unlabelled, or the loss is not finite.
    """
    for part in (train, val):
        _check_labels(part, len(model.card.classes))
    dim, embedding_dim = model.card.dim, model.aggregator.embedding_dim
    precision = precision_of(spec.precision, torch.device(device), dim, embedding_dim)
    fabric = fabric_of(device, precision)
    fabric.to_device(model)
    optimizer = adamw(model.parameters(), spec)
    average = None if spec.ema is None else WeightAverage(model, spec.ema)
    shown = model if average is None else average.model
    best = _Best()
    parts = {
        "model": model,
        "optimizer": optimizer,
        "best": best,
        "random": RandomState(fabric.device),
    }
    if average is not None:
        parts["average"] = average
    history: list[dict[str, Any]] = []

    with seeded(seed):
        if state is not None:
            history = state.restore(
                parts, _made_from(model, train, val, spec, seed, fabric, precision)
            )
        if not history:
            if spec.standardise:
                model.standardise(train)
            with torch.no_grad():
                model.objective.before_fit(_outputs(model, train, fabric))
        while len(history) < spec.epochs and len(history) <= best.epoch + spec.patience:
            epoch, started = len(history), time.perf_counter()
            row = {
                "epoch": epoch,
                **_train_epoch(fabric, model, optimizer, average, train, spec, seed, epoch),
            }
            shown.eval()
            checked = None if val is None else _validate(shown, val, fabric, spec, score, epoch)
            row["val_loss"] = checked.loss if checked else None
            row["monitor"] = checked.monitor if checked else None
            row["figures"] = checked.figures if checked else _train_figures(shown, train, fabric)
            row["alarms"] = [
                alarm.to_json() for alarm in alarms([*history, row], model.card.classes)
            ]
            row["seconds"] = time.perf_counter() - started
            history.append(row)
            if on_epoch is not None:
                on_epoch(row)
            best.offer(shown, epoch, checked)
            if state is not None:
                state.offer(parts, history)

        model.load_state_dict(best.state)
        with torch.no_grad():
            val_outputs = None if val is None else _outputs(model, val, fabric)
            model.objective.after_fit(_outputs(model, train, fabric), val_outputs)
    model.eval()
    return FitResult(tuple(history), best.epoch, best.monitor, precision)


def _made_from(
    model: Model,
    train: BagDataset,
    val: BagDataset | None,
    spec: FitSpec,
    seed: int,
    fabric: Fabric,
    precision: Precision,
) -> dict[str, str]:
    """Return, by name, all that decides the weights but the bags' content."""

    def slides(part: BagDataset | None) -> str:
        if part is None or part.y is None:
            return "none"
        return sha256_json([[*part.slide_ids], part.y.tolist()])

    return {
        "wsi": wsi.__version__,
        "torch": torch.__version__,
        "device": fabric.device.type,
        "precision": precision,
        "threads": str(torch.get_num_threads()),
        "model": sha256_json(asdict(model.card)),
        "fit": sha256_json(spec.model_dump(mode="json", exclude={"seeds"})),
        "seed": str(seed),
        "training slides": slides(train),
        "validation slides": slides(val),
    }


def _train_epoch(
    fabric: Fabric,
    model: Model,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    train: BagDataset,
    spec: FitSpec,
    seed: int,
    epoch: int,
) -> dict[str, Any]:
    """Return the mean loss, the last rate and the largest gradient norm of one epoch."""
    stepper = cast(torch.optim.Optimizer, fabric.setup_optimizers(optimizer))
    steps = math.ceil(len(train) / spec.bags_per_step)
    figures, ids, rate = [], [], 0.0
    model.train()
    for step, pieces in enumerate(steps_of(train, spec, fabric.device, seed, epoch)):
        rate = learning_rate(epoch * steps + step, steps, spec)
        set_rate(optimizer, rate)
        figures.append(take_step(fabric, model, stepper, pieces, spec))
        if average is not None:
            average.update(model)
        ids.append([slide_id for piece in pieces for slide_id in piece.slide_ids])

    # Read once per epoch: looking at every loss as it comes would stall an accelerator.
    losses, norms = torch.stack(figures).double().cpu().unbind(1)
    bad = ~(losses.isfinite() & norms.isfinite())
    if bad.any():
        step = int(bad.nonzero()[0])
        raise TrainingError(
            f"epoch {epoch}, step {step} ({', '.join(ids[step])}): loss {losses[step]:g}, gradient "
            f"norm {norms[step]:g} — lower fit.lr, or verify these bags"
        )
    return {"train_loss": losses.mean().item(), "lr": rate, "grad_norm": norms.max().item()}


@dataclass(frozen=True)
class _Checked:
    """Validation figures of one epoch; `key` is larger for a better epoch."""

    loss: float
    monitor: float
    key: tuple[float, float]
    figures: dict[str, Any]


@torch.no_grad()
def _validate(
    model: Model, val: BagDataset, fabric: Fabric, spec: FitSpec, score: Score, epoch: int
) -> _Checked:
    # All at once, which also gives losses over pairs their pairs.
    ((output, labels),) = as_one(_outputs(model, val, fabric))
    loss = model.objective(output, labels).item()
    p, y = model.probabilities(output).cpu().numpy(), labels.cpu().numpy()
    _check_finite(p, val, epoch)
    log_p = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    _, fitted = fit_temperature(log_p, y, low=_TIE_RANGE[0], high=_TIE_RANGE[1])
    by_loss = spec.monitor == "loss"
    monitor = mean_nll(log_p, y) if by_loss else float(score(y, p))
    if not math.isfinite(monitor):
        raise TrainingError(
            f"epoch {epoch}: fit.monitor={spec.monitor} is {monitor} on the {len(y)} validation "
            "bags — take more of them, or set fit.monitor=loss"
        )
    figures = epoch_figures(model.objective, [(output, labels)]) | prediction_figures(y, p)
    key = (-monitor if by_loss else monitor, -fitted)
    return _Checked(loss, monitor, key, figures)


def _check_finite(p: np.ndarray, val: BagDataset, epoch: int) -> None:
    """Raise TrainingError, naming the bags at fault, where a probability is not a number."""
    bad = np.flatnonzero(~np.isfinite(p).all(axis=1)).tolist()
    if bad:
        # A tile that is no number spreads to small bags laid beside its own.
        broken = [index for index in bad if not np.isfinite(val.tiles(index)[0]).all()]
        raise TrainingError(
            f"epoch {epoch}: no finite prediction for validation bags "
            f"{few([val.slide_ids[index] for index in broken or bad])} — "
            + ("verify them" if broken else "lower fit.lr")
        )


def _train_figures(model: Model, train: BagDataset, fabric: Fabric) -> dict[str, Any]:
    """Return the objective's figures of the training bags: one pass, if it has any."""
    return epoch_figures(model.objective, _outputs(model, train, fabric))


class _Best:
    """The weights of the best epoch so far; without validation, of the last."""

    def __init__(self) -> None:
        self.epoch = 0
        self.state: dict[str, Tensor] = {}
        self.monitor: float | None = None
        self._key = (-math.inf, -math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        told = {"epoch": self.epoch, "monitor": self.monitor, "key": self._key}
        return told | {"weights": self.state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.epoch, self.monitor = state_dict["epoch"], state_dict["monitor"]
        self._key, self.state = state_dict["key"], dict(state_dict["weights"])

    def offer(self, model: Model, epoch: int, checked: _Checked | None) -> None:
        if checked is not None and checked.key <= self._key:
            return
        self.epoch = epoch
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if checked is not None:
            self.monitor, self._key = checked.monitor, checked.key


def _outputs(model: Model, dataset: BagDataset, fabric: Fabric) -> Iterator[tuple[Output, Tensor]]:
    """Yield the outputs and classes of all bags, from all their tiles, small bags together."""
    for batch, output in evaluated(model, dataset, fabric.device, _EVALUATED_TILES):
        yield output, labels_of(batch)


def _check_labels(dataset: BagDataset | None, n_classes: int) -> None:
    if dataset is None:
        return
    if len(dataset) == 0 or dataset.y is None:
        raise TrainingError("training needs at least one labelled bag in each part — check splits")
    wrong = (dataset.y < 0) | (dataset.y >= n_classes)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise TrainingError(
            f"{dataset.slide_ids[index]} has class index {dataset.y[index]}, the model has "
            f"{n_classes} classes — check data.classes"
        )
