"""Where weights lie, and reading them without running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
from safetensors.torch import load_file
from torch import Tensor

from wsi.errors import EncoderError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_REACH_S = 3.0
# The hub's client has changed its transport library more than once; its own error knows which.
_NETWORK_ERRORS = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))


def hub_file(repo: str, names: tuple[str, ...], encoder: str) -> Path:
    """Return the local path of the first of `names` that `repo` has, fetched if need be.

    Whether the hub answers is tried once and for three seconds only, before any download.

    Raises:
        EncoderError: it is not in the cache and cannot be fetched; says what to do.
    """
    for name in names:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(encoder, repo, "HF_HUB_OFFLINE is set and it is not in the cache")
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repo, name), timeout=_REACH_S)
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            reason = f"it is gated, ask for access at {constants.ENDPOINT}/{repo} and log in"
            raise _unavailable(encoder, repo, reason) from error
        except _NETWORK_ERRORS as error:
            raise _unavailable(encoder, repo, _one_line(error)) from error
    raise _unavailable(encoder, repo, f"the repository has none of {', '.join(names)}")


def read_weights(path: Path, encoder: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a torch file that holds tensors only.

    Raises:
        EncoderError: the file is absent, damaged or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors, and none is worth a traceback
        raise EncoderError(
            f"encoder {encoder}: {path.name} is not readable as weights ({_one_line(error)}) — "
            "give a .safetensors file"
        ) from error
    if not isinstance(weights, Mapping) or not all(torch.is_tensor(w) for w in weights.values()):
        raise EncoderError(
            f"encoder {encoder}: {path.name} is not a dictionary of tensors — give a .safetensors "
            "file"
        )
    return dict(weights)


def _unavailable(encoder: str, repo: str, reason: str) -> EncoderError:
    return EncoderError(
        f"encoder {encoder}: the weights of {repo} are not available ({reason}) — put them in the "
        f"cache {constants.HF_HUB_CACHE}, give encoder.weights=<file>, or use encoder=texture-v1, "
        "which needs none"
    )


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
