"""Patch encoders: tiles in, features out."""

from wsi.encoders.base import Encoder, EncoderInfo
from wsi.encoders.catalog import CATALOG
from wsi.encoders.load import encoder_info, load_encoder

__all__ = ["CATALOG", "Encoder", "EncoderInfo", "encoder_info", "load_encoder"]
