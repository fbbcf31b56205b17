"""Whole-slide images to attention-MIL slide classifiers, with intervals a reviewer can trust.

Names are loaded when first used, so `import wsi` costs no heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.bags import StoredBags as StoredBags
    from wsi.bags import open_store as open_store
    from wsi.classifier import MILClassifier as MILClassifier
    from wsi.cohorts import read_cohort as read_cohort
    from wsi.errors import WsiError as WsiError
    from wsi.slides import open_slide as open_slide
    from wsi.specs import Config as Config

_LAZY = {
    "Config": "wsi.specs",
    "MILClassifier": "wsi.classifier",
    "StoredBags": "wsi.bags",
    "WsiError": "wsi.errors",
    "open_slide": "wsi.slides",
    "open_store": "wsi.bags",
    "read_cohort": "wsi.cohorts",
}

__all__ = [
    "Config",
    "MILClassifier",
    "StoredBags",
    "WsiError",
    "open_slide",
    "open_store",
    "read_cohort",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'wsi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
