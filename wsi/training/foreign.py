"""Weights of other tools' attention models, name by name, where their architecture is one of ours.

Sources: CLAM, Lu et al. 2021 (arXiv 2004.09666), the names in its model_clam.py; MIL-Lab, Shao et
al. 2025, those in its abmil.py. Facts of naming alone; the layers are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsi.aggregators import AGGREGATORS
from wsi.bags.foreign.safe_pt import read_tensors
from wsi.errors import ConfigError, ForeignBagError
from wsi.findings import few
from wsi.training.model import Model, ModelCard, from_card

Tool = Literal["clam", "mil-lab"]

# (.+) is weight or bias. The place of a layer depends on whether dropout stands before it.
_GATED = {
    r"attention_a\.0\.(.+)": "attention.content.{}",
    r"attention_b\.0\.(.+)": "attention.gate.{}",
    r"attention_c\.(.+)": "attention.score.{}",
}
_PLAIN = {r"module\.0\.(.+)": "attention.content.{}", r"module\.[23]\.(.+)": "attention.score.{}"}
_NAMES: dict[Tool, dict[str, str]] = {
    "clam": {
        r"attention_net\.0\.(.+)": "embed.0.{}",
        **{rf"attention_net\.[23]\.{k}": v for k, v in (_GATED | _PLAIN).items()},
        r"classifiers\.(weight|bias)": "head.{}",
    },
    "mil-lab": {
        r"patch_embed\.0\.(.+)": "embed.0.{}",
        **{rf"global_attn\.{k}": v for k, v in (_GATED | _PLAIN).items()},
        r"classifier\.(weight|bias)": "head.{}",
    },
}
_BRANCH = re.compile(r"classifiers\.(\d+)\.(weight|bias)")  # of CLAM with a branch per class
_UNUSED = re.compile(r"instance_classifiers\.\d+\.(weight|bias)|instance_loss_fn\..+")
_OUTER = ("model.", "module.")  # what wrappers put before every name
_NEEDED = (
    "embed.0.weight",
    "embed.0.bias",
    "attention.content.weight",
    "attention.content.bias",
    "attention.score.weight",
)


@dataclass(frozen=True, eq=False)
class Imported:
    """A model made of another tool's weights.

    Attributes:
        left_out: names in the file that prediction does not need, each with the reason.
    """

    model: Model
    left_out: Mapping[str, str]


def import_model(path: Path, tool: Tool, classes: Sequence[str]) -> Imported:
    """Return the model of a `.pt` or `.safetensors` file; nothing in it is executed.

    Features are not standardised, and the probabilities are the softmax of the logits.

    Raises:
        UnsafeFileError: the file holds anything but tensors, or claims more than it holds.
        ForeignBagError: it is damaged.
        ConfigError: names or shapes are not those of an architecture known here, all of them
            listed, or the number of classes is another.
    """
    found = _unwrapped(_tensors(path))
    ours, left_out, unmatched = _renamed(found, tool)
    missing = [name for name in (*_NEEDED, "head.weight", "head.bias") if name not in ours]
    if unmatched or missing:
        told = [f"no place for {few(unmatched)}"] if unmatched else []
        told += [f"nothing for {few(missing)}"] if missing else []
        raise ConfigError(
            f"{path.name} does not have the names of a {tool} model known here: {'; '.join(told)} "
            "— gated and plain attention with one layer before and one classifier after are"
        )
    card = _card(path, ours, tuple(classes))
    if card.aggregator == "abmil_mb":
        ours = {n.replace("head.", "head.each."): tensor for n, tensor in ours.items()}
    return Imported(_filled(path, card, ours), left_out)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_tensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ForeignBagError(f"{path.name}: not readable ({error}) — copy it again") from error


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # CLAM spreads its attention network over devices, which puts a word into its names.
    found = {
        name.replace("attention_net.module.", "attention_net."): t for name, t in tensors.items()
    }
    for outer in _OUTER:
        if all(name.startswith(outer) for name in found):
            found = {name.removeprefix(outer): tensor for name, tensor in found.items()}
    return found


def _renamed(
    found: Mapping[str, Tensor], tool: Tool
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return the tensors by our names, what is not needed, and names without a place."""
    ours: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unmatched = []
    branches: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in found.items():
        branch = _BRANCH.fullmatch(name) if tool == "clam" else None
        mine = _ours(name, tool)
        if branch is not None:
            branches[branch[2]][int(branch[1])] = tensor
        elif tool == "clam" and _UNUSED.fullmatch(name):
            left_out[name] = "it scores single tiles in CLAM's training"
        elif mine == "attention.score.bias":
            left_out[name] = "it adds the same to every tile, which the softmax takes away"
        elif mine is None or mine in ours:
            unmatched.append(name)
        else:
            ours[mine] = tensor
    for kind, by_class in branches.items():
        if by_class and sorted(by_class) == list(range(len(by_class))):
            ours[f"head.{kind}"] = torch.cat([by_class[c] for c in sorted(by_class)])
    return ours, left_out, unmatched


def _ours(name: str, tool: Tool) -> str | None:
    for pattern, mine in _NAMES[tool].items():
        match = re.fullmatch(pattern, name)
        if match is not None:
            return mine.format(match[1])
    return None


def _card(path: Path, ours: Mapping[str, Tensor], classes: tuple[str, ...]) -> ModelCard:
    """Return the architecture that the shapes tell of."""
    matrices = [name for name in ours if name.endswith("weight") and ours[name].ndim != 2]
    if matrices:
        raise ConfigError(f"{path.name}: {few(matrices)} are no matrices — check --from")
    hidden, dim = ours["embed.0.weight"].shape
    heads, attention_dim = ours["attention.score.weight"].shape
    C = len(ours["head.weight"])
    if len(classes) != C:
        raise ConfigError(
            f"{path.name} is a model of {C} classes, and {len(classes)} were named "
            f"({', '.join(classes)}) — name all, in the order it was trained with"
        )
    name = "abmil" if heads == 1 else "abmil_mb"
    if heads not in (1, C) or ours["head.weight"].shape[1] != hidden:
        raise ConfigError(
            f"{path.name} has {heads} attention heads before a classifier of "
            f"{tuple(ours['head.weight'].shape)} — one head, or one per class with its own "
            "classifier, are known here"
        )
    if name not in AGGREGATORS.names():
        raise ConfigError(f"{path.name} has a branch per class, which no aggregator here has")
    params = {
        "hidden": hidden,
        "attention_dim": attention_dim,
        "gated": any(k.startswith("attention.gate.") for k in ours),
    }
    return ModelCard(dim, classes, (1,) * C, name, "ce", params)


def _filled(path: Path, card: ModelCard, ours: Mapping[str, Tensor]) -> Model:
    """Return the model of a card with these weights in its aggregator."""
    model = from_card(card)
    own = model.aggregator.state_dict()
    odd = [n for n, t in own.items() if n not in ours or ours[n].shape != t.shape]
    odd += [n for n in ours if n not in own]
    if odd:
        raise ConfigError(
            f"{path.name}: {few(sorted(set(odd)))} do not fit an '{card.aggregator}' of "
            f"{card.dim} features — check --from"
        )
    bad = [name for name, tensor in ours.items() if not tensor.float().isfinite().all()]
    if bad:
        raise ConfigError(f"{path.name}: {few(bad)} hold values that are no finite numbers")
    model.aggregator.load_state_dict({n: t.float() for n, t in ours.items()})
    return model.eval()
