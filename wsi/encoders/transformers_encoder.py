"""Vision models of transformers as encoders; code that lies on the hub is never run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging as talk

from wsi.encoders.hub import CONFIG, Source
from wsi.encoders.network import Network
from wsi.encoders.pooling import pool_tokens
from wsi.encoders.row import Row
from wsi.encoders.weights import Files, misfit, read_weights, weights_hash
from wsi.errors import EncoderError

# The class of the configuration, the word for it in config.json, and arguments of the model.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", "vit", {"add_pooling_layer": False}),
    "Dinov2Model": ("Dinov2Config", "dinov2", {}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", "dinov2_with_registers", {}),
}
_HEADS = ("pooler.", "classifier.", "head.")  # beyond the tokens that are pooled here
_TRAINING_ONLY = "embeddings.mask_token"


class TransformersEncoder(Network):
    """A vision transformer by transformers, with the row's transform and pooling."""

    def _source(self) -> Source | None:
        return Source.of(self._row, self._row.repo or "")

    def _load(self, files: Files) -> tuple[nn.Module, str]:
        settings = configuration(self._row, files.config)
        if files.weights is not None:
            return _filled(settings, files.weights, self._row)
        model = build(settings, self._weights.seed)
        return model, weights_hash(model.state_dict())

    def _pooled(self, images: Tensor) -> Tensor:
        model = cast("Any", self._model)
        tokens = model(pixel_values=images).last_hidden_state
        prefix = 1 + getattr(model.config, "num_register_tokens", 0)
        return pool_tokens(tokens, prefix, self._row.pooling, self._row.name)


def configuration(row: Row, path: Path | None = None) -> Any:
    """Return the configuration in the file `path`, or that of the row.

    Whatever the file says of classes of its own (`auto_map`) is passed over.

    Raises:
        EncoderError: the file is of no model that is known here.
    """
    if path is None:
        name, _, _ = _MODELS[row.architecture]
        return getattr(transformers, name)(**row.kwargs)
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        word = stated["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"encoder {row.name}: {CONFIG} is not a configuration of transformers — fetch it again"
        ) from error
    for name, known, _ in _MODELS.values():
        if word == known:
            return getattr(transformers, name).from_dict(stated)
    raise EncoderError(
        f"encoder {row.name}: {CONFIG} is of a '{word}', not of "
        f"{', '.join(known for _, known, _ in _MODELS.values())} — add it as a class by the entry "
        "point wsi.encoders"
    )


def build(settings: Any, seed: int = 0) -> nn.Module:
    """Return the model of a configuration, its weights drawn from `seed`."""
    model_class, arguments = _class_of(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(settings, **arguments)


def _class_of(settings: Any) -> tuple[Any, dict[str, Any]]:
    for model, (config, _, arguments) in _MODELS.items():
        if type(settings).__name__ == config:
            return getattr(transformers, model), arguments
    raise AssertionError(f"no model for {type(settings).__name__}")


def _filled(settings: Any, path: Path, row: Row) -> tuple[nn.Module, str]:
    """Return the model with every tensor from `path`, and the hash of these tensors.

    transformers renames what older versions of it have written, so it fills the model itself.
    """
    tensors = read_weights(path, row.name)
    tensors = {k: v for k, v in tensors.items() if not k.startswith(_HEADS)}
    model, told = _made(settings, tensors, row, path)
    missing = sorted(set(told["missing_keys"]) - {_TRAINING_ONLY})
    shapes = sorted(
        str(key[0] if isinstance(key, tuple) else key) for key in told["mismatched_keys"]
    )
    unexpected = sorted(told["unexpected_keys"])
    if missing or shapes or unexpected:
        problems = [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        ]
        raise misfit(row.name, path, problems)
    return model.float(), weights_hash(tensors)


def _made(
    settings: Any, tensors: dict[str, Tensor], row: Row, path: Path
) -> tuple[Any, dict[str, Any]]:
    """Return what transformers makes of `tensors`, and what it could not place."""
    model_class, arguments = _class_of(settings)
    # Tensors of another shape are told like the others, in place of a table in the log.
    arguments = {"output_loading_info": True, "ignore_mismatched_sizes": True, **arguments}
    try:
        with _quietly():
            return model_class.from_pretrained(
                None, config=settings, state_dict=dict(tensors), **arguments
            )
    except RuntimeError as error:
        raise misfit(row.name, path, [(str(error).splitlines()[0], ["tensors"])]) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing bars and tables; what matters is raised as an error."""
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
