"""One model as an ONNX file: a bag's features in, probabilities out, checked before it is given.

Nothing of it needs wsi to run; what is exported is what `predict` computes, from standardisation
to the decision rule that was settled.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsi.aggregators.base import Output
from wsi.data import BagBatch, pack
from wsi.errors import ConfigError, TrainingError
from wsi.files import publish_bytes
from wsi.objectives.rules import RuleName
from wsi.training.model import Model

SCHEMA = "wsi-onnx/1"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CHECKED_TILES = (1, 7, 500)
TOLERANCE = 1e-4
_EXAMPLE_TILES = 13  # traced with; no number that a size could be mistaken for


@dataclass(frozen=True)
class Exported:
    """A checked model.

    Attributes:
        content: of the file.
        outputs: names of what it gives.
        error: the largest difference from torch that the check has seen.
    """

    content: bytes
    outputs: tuple[str, ...]
    error: float


class _OneBag:
    """A batch of one bag whose number of tiles stays open."""

    slide_ids = ("bag",)
    y = None

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.sizes = (x.shape[0],)

    @property
    def xy0(self) -> Tensor:
        raise ConfigError("it reads where tiles lie, and an exported model is given features alone")


class _Whole(nn.Module):
    """Features (N, D) to probabilities (C,), embedding (E,) and attention (N, H) where there is."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.rule: RuleName = model.objective.rule  # a number in the weights, settled by now
        # Up to a term that classes share, and without distances, which have no operator.
        self.linear = model.objective.linear_head()

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        x = (features - model.feature_mean) / model.feature_scale
        output = model.aggregator.aggregate(_OneBag(x))  # pyright: ignore[reportArgumentType]
        p = self._scores(output).double().softmax(-1)[0].float()
        more = () if output.attention is None else (output.attention,)
        return (p, output.embedding[0], *more)

    def _scores(self, output: Output) -> Tensor:
        if self.linear is None:
            return self.model.objective.scores(output, self.rule)
        W, b = self.linear
        return output.embedding.double() @ W.double().T + b.double()


def check_packages() -> None:
    """Raise ConfigError unless the packages that export needs are installed."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"export needs {', '.join(absent)}, not installed here — pip install 'wsi[onnx]'"
        )


def export(model: Model, about: Mapping[str, Any]) -> Exported:
    """Return the model as ONNX, after holding it against torch on random bags.

    Args:
        about: JSON for the file's metadata, beside the schema, classes and what the inputs are.

    Raises:
        ConfigError: a package is missing.
        TrainingError: its aggregator or objective cannot be exported, or the exported model gives
            anything else than torch does.
    """
    check_packages()
    whole = _Whole(model.cpu().eval()).eval()
    names = _outputs(whole)
    content = _with_metadata(_traced(whole, names), model, about)
    return Exported(content, names, _checked(content, whole, names))


def write(path: Path, exported: Exported) -> None:
    """Write the file in one step."""
    publish_bytes(path, exported.content)


def _outputs(whole: _Whole) -> tuple[str, ...]:
    with torch.no_grad():
        try:
            given = whole(torch.zeros(2, whole.model.card.dim))
        except ConfigError as error:
            raise _refusal(whole.model, str(error)) from error
    return ("probabilities", "embedding", "attention")[: len(given)]


def _traced(whole: _Whole, names: tuple[str, ...]) -> Any:
    """Return the ONNX model."""
    features = _bag(whole.model, _EXAMPLE_TILES)
    shapes = {"features": {0: torch.export.Dim("tiles", min=1)}}
    try:
        with _hushed():
            program: Any = torch.onnx.export(
                whole,
                (features,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
                input_names=["features"],
                output_names=list(names),
            )
        return program.model_proto
    except Exception as error:  # whatever the exporter trips over, of any of its layers
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        raise _refusal(whole.model, why) from error


def _with_metadata(proto: Any, model: Model, about: Mapping[str, Any]) -> bytes:
    import onnx

    card = model.card
    told = {
        "schema": SCHEMA,
        "classes": list(card.classes),
        "dim": card.dim,
        "aggregator": card.aggregator,
        "objective": card.objective,
        "rule": model.objective.rule,
        "input": "features (N, D) float32 of all tiles of one slide, not standardised",
        "use": "research use only",
        **about,
    }
    text = {k: v if isinstance(v, str) else json.dumps(v, allow_nan=False) for k, v in told.items()}
    onnx.helper.set_model_props(proto, text)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _checked(content: bytes, whole: _Whole, names: tuple[str, ...]) -> float:
    """Return the largest difference from torch on bags of several sizes.

    Raises:
        TrainingError: it is above `TOLERANCE`, of the value where that is above 1.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in CHECKED_TILES:
        features = _bag(whole.model, n)
        found = session.run(list(names), {"features": features.numpy()})
        for name, value, expected in zip(names, found, _by_torch(whole.model, features)):
            given = np.asarray(value, np.float64)
            if given.shape != expected.shape:
                why = f"{name} has the shape {given.shape}, not {expected.shape}, for {n} tiles"
                raise _refusal(whole.model, why)
            error = float((np.abs(given - expected) / np.maximum(1, np.abs(expected))).max())
            if not error <= TOLERANCE:
                why = f"{name} differs by {error:.1e} from torch for {n} tiles"
                raise _refusal(whole.model, why)
            worst = max(worst, error)
    return worst


@torch.no_grad()
def _by_torch(model: Model, features: Tensor) -> list[np.ndarray]:
    """Return what prediction gives for a bag, by the way that every bag goes."""
    batch: BagBatch = pack([(features, None, "bag", None)])
    output = model(batch)
    given = [model.probabilities(output)[0], output.embedding[0]]
    given += [] if output.attention is None else [output.attention]
    return [value.double().numpy() for value in given]


def _bag(model: Model, n: int) -> Tensor:
    """Return features (n, D) such as the model was trained on."""
    drawn = torch.randn(n, model.card.dim, generator=torch.Generator().manual_seed(n))
    return model.feature_mean + model.feature_scale * drawn


def _refusal(model: Model, why: str) -> TrainingError:
    card = model.card
    return TrainingError(
        f"a model of aggregator '{card.aggregator}' and objective '{card.objective}' cannot be "
        f"exported ({why}) — use its checkpoint with `wsi predict`; nothing was written"
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep the exporter's warnings and logs from people: what comes out is checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
