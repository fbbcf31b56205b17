"""Stain normalisation: the colours of a slide's tissue brought to those of a reference."""

from __future__ import annotations

from wsi.stain.base import Normaliser, StainMethod, stained
from wsi.stain.plan import STAINS, StainPlan, plan_stain

__all__ = ["STAINS", "Normaliser", "StainMethod", "StainPlan", "plan_stain", "stained"]
