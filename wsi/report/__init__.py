"""Offline pages: the figures of runs, and the slides of a cohort.

Names are loaded when first used: a contact sheet need not wait for what only figures import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.report.contact_sheet import SlideCard as SlideCard
    from wsi.report.contact_sheet import write_contact_sheet as write_contact_sheet
    from wsi.report.model_card import write_model_card as write_model_card
    from wsi.report.page import write_report as write_report
    from wsi.report.summary import Example as Example
    from wsi.report.summary import PartRow as PartRow
    from wsi.report.summary import RunSummary as RunSummary

_LAZY = {
    "Example": "wsi.report.summary",
    "PartRow": "wsi.report.summary",
    "RunSummary": "wsi.report.summary",
    "SlideCard": "wsi.report.contact_sheet",
    "write_contact_sheet": "wsi.report.contact_sheet",
    "write_model_card": "wsi.report.model_card",
    "write_report": "wsi.report.page",
}

__all__ = [
    "Example",
    "PartRow",
    "RunSummary",
    "SlideCard",
    "write_contact_sheet",
    "write_model_card",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'wsi.report' has no attribute {name!r}")
