"""Explanation: where on a slide a model looked."""

from __future__ import annotations

from wsi.explain.attention import Attention, attention_of, draw_attention, top_tiles

__all__ = ["Attention", "attention_of", "draw_attention", "top_tiles"]
