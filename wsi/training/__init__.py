"""Training and prediction: the loop, the model it trains, checkpoints, seeds.

Names are loaded when first used: prediction need not wait for what only the loop imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.training.checkpoint import load as load
    from wsi.training.checkpoint import save as save
    from wsi.training.loop import FitResult as FitResult
    from wsi.training.loop import fit as fit
    from wsi.training.model import Model as Model
    from wsi.training.model import build as build

_LAZY = {
    "FitResult": "wsi.training.loop",
    "Model": "wsi.training.model",
    "build": "wsi.training.model",
    "fit": "wsi.training.loop",
    "load": "wsi.training.checkpoint",
    "save": "wsi.training.checkpoint",
}

__all__ = ["FitResult", "Model", "build", "fit", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'wsi.training' has no attribute {name!r}")
