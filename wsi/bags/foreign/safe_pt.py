"""Tensors in `.pt` files of unknown origin: the zip and its instructions are looked at first."""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np

from wsi.errors import ForeignBagError, UnsafeFileError

if TYPE_CHECKING:
    import torch

_MOST_INSTRUCTIONS = 1 << 16  # bytes; a plain tensor takes about 500
_PLAIN_TENSOR = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "torch DoubleStorage",  # no bag holds these, which is said later, by type
    "torch LongStorage",
    "collections OrderedDict",
}
_OTHER_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def read_tensor(path: Path) -> np.ndarray:
    """Return the (N, D) tensor of a file, float16 or float32; its bytes stay on disk until used.

    bfloat16 becomes float32, which holds every value of it.

    Raises:
        UnsafeFileError: the file is not one plain tensor whose values it holds.
        ForeignBagError: the tensor is of another shape or type.
    """
    held = check_tensor_file(path)
    import torch  # costs seconds, and only these files need it

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UnsafeFileError(f"{path.name}: not a plain tensor — refused", "pickle") from error
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise _unreadable(path, str(error).partition("\n")[0]) from error
    if type(tensor) is not torch.Tensor:
        what = f"holds a {type(tensor).__name__}, not a plain tensor"
        raise UnsafeFileError(f"{path.name}: {what} — refused", "object-type")
    if math.prod(tensor.shape) * tensor.element_size() > held:
        what = f"claims {tuple(tensor.shape)} values, where it holds {held} bytes"
        raise UnsafeFileError(f"{path.name}: {what} — refused; make the file again", "size-claim")
    if tensor.ndim != 2:
        raise ForeignBagError(
            f"{path.name}: a tensor of shape {tuple(tensor.shape)}, not (N, D) — check --from",
            "wrong-type",
        )
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of a file, out of its `state_dict` where a training run wrote one.

    Raises:
        UnsafeFileError: the file holds anything but plain tensors by name, or claims more than
            it holds.
        ForeignBagError: it is damaged.
    """
    held = check_tensor_file(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UnsafeFileError(f"{path.name}: not plain tensors — refused", "pickle") from error
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise _unreadable(path, str(error).partition("\n")[0]) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    plain = isinstance(content, Mapping) and all(
        isinstance(name, str) and type(value) is torch.Tensor for name, value in content.items()
    )
    if not plain or not content:
        what = f"holds a {type(content).__name__}, not tensors by name"
        raise UnsafeFileError(f"{path.name}: {what} — give a state dict", "object-type")
    claimed = sum(math.prod(t.shape) * t.element_size() for t in content.values())
    if claimed > held:
        what = f"claims {claimed} bytes of values, where it holds {held}"
        raise UnsafeFileError(f"{path.name}: {what} — refused; make the file again", "size-claim")
    return {name: tensor.detach() for name, tensor in content.items()}


def check_tensor_file(path: Path) -> int:
    """Return how many bytes of values a file holds, without torch.

    Raises:
        UnsafeFileError: it is no zip that holds what it claims, or more than a plain tensor.
        ForeignBagError: it is damaged.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise ForeignBagError(f"{path.name}: not a file — check the archive", "missing-file")
    if not zipfile.is_zipfile(path):
        # The format before torch 1.6 is a bare pickle that allocates whatever it claims.
        what = "a pickle or a torch file from before 1.6, not a zip"
        raise UnsafeFileError(f"{path.name}: {what} — save it again with torch.save", "pickle")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            instructions = [m for m in members if m.filename.endswith(".pkl")]
            if len(instructions) != 1:
                raise _unreadable(path, "no data.pkl")
            _check_instructions(path, archive.read(instructions[0]))
            return sum(m.file_size for m in members if "/data/" in m.filename)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise _unreadable(path, str(error)) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(m.file_size for m in members) > size:
        what = "packs or claims more than the file holds"
        raise UnsafeFileError(f"{path.name}: {what} — refused; make the file again", "size-claim")
    large = [m for m in members if m.filename.endswith(".pkl") and m.file_size > _MOST_INSTRUCTIONS]
    if large:
        raise UnsafeFileError(f"{path.name}: holds more than one tensor — refused", "object-type")


def _check_instructions(path: Path, instructions: bytes) -> None:
    """Refuse any callable but those of a plain tensor; nothing is executed here."""
    for opcode, argument, _ in pickletools.genops(instructions):
        called = str(argument) if opcode.name == "GLOBAL" else ""
        if opcode.name in _OTHER_CALLS or (called and called not in _PLAIN_TENSOR):
            what = f"calls {called.replace(' ', '.') or opcode.name.lower()}"
            raise UnsafeFileError(
                f"{path.name}: {what}, so it is no plain tensor — refused, nothing of it was run",
                "pickle",
            )


def _unreadable(path: Path, why: str) -> ForeignBagError:
    return ForeignBagError(f"{path.name}: not a readable .pt file ({why}) — copy it again")
