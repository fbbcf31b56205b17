"""Patch encoders: tiles in, features out."""

from wsi.encoders.base import Encoder, EncoderInfo
from wsi.encoders.catalog import CATALOG
from wsi.encoders.load import ENCODERS, check_encoder_name, encoder_info, load_encoder
from wsi.encoders.row import Row

__all__ = [
    "CATALOG",
    "ENCODERS",
    "Encoder",
    "EncoderInfo",
    "Row",
    "check_encoder_name",
    "encoder_info",
    "load_encoder",
]
