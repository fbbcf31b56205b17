"""In which floating-point type a network computes: what the device does natively."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from wsi.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
TYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_NATIVE = ("avx512_bf16", "amx_bf16")
_TENSOR_CORES, _AMPERE = (7, 0), (8, 0)  # compute capabilities: fp16 is fast from, bf16 from


@cache
def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 natively; elsewhere it is emulated."""
    probe = getattr(torch.cpu, "get_capabilities", None)
    if probe is not None:
        found = probe()
        return any(found.get(name) for name in _NATIVE)
    try:  # older torch; elsewhere than on Linux fp32 is always right
        return not set(_NATIVE).isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def settle_precision(compute: str, device: torch.device) -> Precision:
    """Return the type to compute in on `device`; `auto` is the fastest that is native there.

    Raises:
        ConfigError: the device cannot compute in the type asked for.
    """
    if compute == "auto":
        return _native(device)
    if compute not in TYPES:
        raise ConfigError(f"compute={compute} — choose from auto, {', '.join(TYPES)}")
    if compute == "fp16" and device.type == "cpu":
        raise ConfigError("compute=fp16 is for GPUs — use bf16 or fp32 on a CPU")
    return cast("Precision", compute)


def _native(device: torch.device) -> Precision:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _AMPERE:
            return "bf16"
        return "fp16" if capability >= _TENSOR_CORES else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def prepare(model: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """Return `model` on `device`, laid out for it.

    On a CPU the weights themselves are cast: faster than autocast, which casts again for each
    batch. On a GPU autocast keeps what needs range (normalisation, softmax) in fp32.
    """
    if precision == "fp32":
        return model.to(device)
    if device.type == "cpu":
        model = model.to(dtype=TYPES[precision])
    return cast("Any", model).to(device, memory_format=torch.channels_last)


def as_input(images: Tensor, precision: Precision) -> Tensor:
    """Return `images` (B, 3, s, s) fp32 in the type and layout of a prepared model."""
    if precision == "fp32":
        return images
    kind = TYPES[precision] if images.device.type == "cpu" else images.dtype
    return images.to(dtype=kind, memory_format=torch.channels_last)


def casting(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """Return the context in which a prepared model is called; it holds for this thread alone."""
    if precision == "fp32" or device.type == "cpu":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=TYPES[precision])
