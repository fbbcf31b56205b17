"""Which weights an encoder has, and reading them without running code from them."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wsi.encoders.hub import Source, hub_sha256, in_folder
from wsi.encoders.row import Row
from wsi.errors import EncoderError, UnsafeWeightsError, WeightsError
from wsi.files import sha256_file

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32)
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Files:
    """The files that an encoder is made from; none with random weights.

    Args:
        config: the hub's description of the architecture, where there is one.
        sha256: of the weights, where they were compared with one.
    """

    config: Path | None = None
    weights: Path | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights come from: `pretrained`, `random` with a seed, or a path.

    Args:
        path: a file, or a folder as the hub lays it out.
        sha256: what the file must have; the row's own where none is given.
    """

    kind: str = "pretrained"
    seed: int = 0
    path: Path | None = None
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what provenance says; a path by its name alone, as folders may be private."""
        if self.kind == "random":
            return {"weights": "random", "seed": self.seed}
        return {"weights": self.path.name if self.path else "pretrained"}

    def files(self, row: Row, source: Source | None) -> Files:
        """Return the files to make the encoder of `row` from.

        Args:
            source: where they are on the hub; None where nothing is known there.

        Raises:
            EncoderError: they are not to be had; says what to do.
            WeightsError: the file is not the one that was pinned.
        """
        if self.kind == "random":
            return Files(self._config(row, source))
        if self.path is None:
            config, found = self._from_hub(row, source)
        elif self.path.is_dir():
            config, found = in_folder(self.path, row.name, source)
        else:
            config, found = self._config(row, source), self.path
        expected = self.sha256 or row.sha256 or hub_sha256(found)
        check_sha256(found, expected, row.name)
        return Files(config, found, expected)

    def _from_hub(self, row: Row, source: Source | None) -> tuple[Path | None, Path]:
        if source is None:
            raise EncoderError(
                f"encoder {row.name}: timm knows no pretrained weights for {row.load} — give "
                "weights=<file>, or weights=random if that is what you want"
            )
        found = source.fetch(source.weight_files)
        return source.config(), found

    def _config(self, row: Row, source: Source | None) -> Path | None:
        """Return the hub's configuration where the row does not know the architecture."""
        return None if row.architecture or source is None else source.config()


def check_sha256(path: Path, expected: str | None, encoder: str) -> None:
    """Compare a file with the SHA-256 it should have; nothing where none is known.

    Raises:
        WeightsError: it has another.
    """
    if expected is None:
        return
    found = sha256_file(path)
    if found != expected.lower():
        raise WeightsError(
            f"encoder {encoder}: {path.name} has sha256 {found}, expected {expected} — the file is "
            "damaged or another version; fetch it again, or pin it by encoder.sha256=<hex>"
        )


def read_weights(path: Path, encoder: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a torch file that holds tensors only.

    Raises:
        UnsafeWeightsError: a torch file holds anything but tensors, or claims more than it holds.
        EncoderError: the file is absent or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_records(path, encoder)
        _check_claims(path, _unpickled(path, "meta"), encoder)
        return _named_tensors(path, _unpickled(path, "cpu"), encoder)
    except EncoderError:
        raise
    except Exception as error:  # each format has its own errors, and none is worth a traceback
        if type(error).__name__ == "UnpicklingError":
            raise UnsafeWeightsError(
                f"encoder {encoder}: {path.name} holds more than tensors, which could run code — "
                "take the tensors out where you trust it, and give a .safetensors file"
            ) from error
        raise EncoderError(
            f"encoder {encoder}: {path.name} is not readable as weights ({_one_line(error)}) — "
            "give a .safetensors file"
        ) from error


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def misfit(encoder: str, path: Path, problems: Sequence[tuple[str, Sequence[str]]]) -> EncoderError:
    """Return the error that names tensors which do not fit: ("missing", names), ..."""
    listed = "; ".join(f"{_listed(names)} {what}" for what, names in problems if names)
    return EncoderError(
        f"encoder {encoder}: {path.name} does not fit the model ({listed}) — give the weights of "
        "this very architecture"
    )


def _unpickled(path: Path, device: str) -> Any:
    return torch.load(path, map_location=device, weights_only=True)


def _check_records(path: Path, encoder: str) -> None:
    """Refuse archives that grow when they are opened; those of torch are stored as they are."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size = path.stat().st_size
    if any(record.compress_type for record in records) or sum(r.file_size for r in records) > size:
        raise UnsafeWeightsError(
            f"encoder {encoder}: {path.name} has compressed or overlapping records, as torch never "
            "writes — do not use it"
        )


def _check_claims(path: Path, content: Any, encoder: str) -> None:
    """Refuse tensors that claim more than the file holds, before memory is taken for them."""
    with zipfile.ZipFile(path) as archive:
        sizes = {r.file_size for r in archive.infolist() if "/data/" in r.filename}
    for name, tensor in _named_tensors(path, content, encoder).items():
        claimed = math.prod(tensor.shape) * tensor.element_size()
        stored = tensor.untyped_storage().nbytes()
        if tensor.dtype not in _TYPES or stored not in sizes | {0} or claimed > stored:
            raise UnsafeWeightsError(
                f"encoder {encoder}: {path.name}: {name} claims {tuple(tensor.shape)} "
                f"{tensor.dtype}, {claimed} bytes, which the file does not hold — do not use it"
            )


def _named_tensors(path: Path, content: Any, encoder: str) -> dict[str, Tensor]:
    """Return the tensors of a torch file, out of the `state_dict` where a training run wrote it."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not all(isinstance(name, str) for name in content)
        or not all(torch.is_tensor(tensor) for tensor in content.values())
    ):
        raise UnsafeWeightsError(
            f"encoder {encoder}: {path.name} is not a dictionary of tensors — give a .safetensors "
            "file"
        )
    return dict(content)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
