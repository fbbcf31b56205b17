"""Where models run, checked before work starts."""

from __future__ import annotations

from wsi.errors import ConfigError

_KINDS = ("cpu", "cuda", "mps")


def check_device(name: str) -> None:
    """Raise ConfigError unless this machine computes on `name`: cpu, cuda, cuda:<index>, mps."""
    kind, colon, index = name.partition(":")
    if kind not in _KINDS or (colon and (kind != "cuda" or not index.isdecimal())):
        raise ConfigError(f"unknown device '{name}' — use cpu, cuda, cuda:1 or mps")
    if kind == "cpu":
        return
    import torch

    n = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(index or 0) >= n:
        raise ConfigError(
            f"device '{name}' is not here (torch finds {n} of {kind}) — see `wsi doctor`, "
            "or use the cpu"
        )
