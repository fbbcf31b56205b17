"""Explanation: where on a slide a model looked, and how much each tile said for which class."""

from __future__ import annotations

from wsi.explain.attention import Attention, attention_of, draw_attention, tile_size, top_tiles
from wsi.explain.gallery import draw_gallery, strongest
from wsi.explain.heatmap import Legend, draw_heatmap
from wsi.explain.localisation import lesion_tiles, share_in, tile_auroc
from wsi.explain.model_evidence import Evidence, mean_evidence, model_evidence
from wsi.explain.smoothing import smooth
from wsi.explain.tile_maps import MAPS, MapName, Question, TileMaps, class_margins, tile_maps

__all__ = [
    "MAPS",
    "Attention",
    "Evidence",
    "Legend",
    "MapName",
    "Question",
    "TileMaps",
    "attention_of",
    "class_margins",
    "draw_attention",
    "draw_gallery",
    "draw_heatmap",
    "lesion_tiles",
    "mean_evidence",
    "model_evidence",
    "share_in",
    "smooth",
    "strongest",
    "tile_auroc",
    "tile_maps",
    "tile_size",
    "top_tiles",
]
