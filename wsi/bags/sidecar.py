"""The JSON file beside each bag: what makes the bag exist for readers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsi.bags.bag import READABLE, SCHEMA, Json, Provenance
from wsi.errors import BagCorruptError, WsiError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish_bytes, sha256_bytes, sha256_json

SUFFIX = ".json"
CORRUPT = "corrupt"
"""Folder inside a folder of bags that damaged files are moved to."""
PACKED = "packed"
"""Folder inside a folder of bags with all of them in one file, see `wsi.bags.packed`."""
_SEAL = b' "self_sha256": "%s"\n}\n'
_SEAL_BYTES = len(_SEAL % sha256_bytes(b"").encode())


@dataclass(frozen=True)
class BagInfo:
    """What is known of a bag without opening it: its sidecar.

    Args:
        status: `done`, or `empty` for a slide that was looked at and has no tiles.
        format: name of the store that wrote it.
        file: the bag's file name beside the sidecar; None when empty. The whole path where the
            bag was left in another tool's archive.
        n, dim, dtype: shape (N, D) and type of the features; 0 tiles and width when empty.
        bytes, sha256: of the bag file.
        key, recipe_key: see `Provenance`.
        counts: tiles by fate: planned, missing, bad, dropped-blur ...
        max_rel_error: worst relative error of the stored float16 features against the float32
            ones given (those below 6.1e-5, float16's smallest normal number, are measured against
            that number); None when nothing was rounded.
        reason: why the slide is empty.
        scores: names of the scores the bag file holds for each tile.
        bad_tiles: the tiles counted as `bad`, each with `xy0` and `reason`.
    """

    slide_id: str
    status: Literal["done", "empty"]
    format: str
    file: str | None
    n: int
    dim: int
    dtype: str
    bytes: int
    sha256: str | None
    key: str
    recipe_key: str
    provenance: Provenance
    counts: Mapping[str, int] = field(default_factory=dict)
    max_rel_error: float | None = None
    reason: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[str] = ()
    bad_tiles: Sequence[Json] = ()


def sidecar_path(root: Path, slide_id: str) -> Path:
    """Return where the sidecar of `slide_id` lies."""
    return root / f"{file_name_of(slide_id)}{SUFFIX}"


def sidecar_paths(root: Path) -> list[Path]:
    """Return the sidecars in `root`, sound or not, sorted; none when there is no such folder."""
    names = os.listdir(root) if root.is_dir() else ()  # noqa: PTH208, paths of 20,000 cost more
    found = (n for n in names if n.endswith(SUFFIX) and not n.startswith(TEMPORARY_PREFIX))
    return [root / name for name in sorted(found)]


def write_sidecar(root: Path, info: BagInfo) -> None:
    """Publish `info`; from then on its bag exists."""
    content = asdict(info) | {"provenance": info.provenance.to_json()}
    publish_bytes(sidecar_path(root, info.slide_id), sealed({"schema": SCHEMA, **content}))


def read_sidecar(path: Path) -> BagInfo:
    """Return the sidecar at `path`.

    Raises:
        BagCorruptError: a byte differs from what was written, or it belongs to another bag.
        FileNotFoundError: there is none.
    """
    content = _checked_content(path)
    try:
        provenance = Provenance(**content.pop("provenance"))
        info = BagInfo(**content, provenance=provenance)
        name = file_name_of(info.slide_id)
    except (TypeError, KeyError, WsiError) as error:
        raise _corrupt(path, f"does not describe a bag ({error})") from error
    if name + SUFFIX != path.name:
        raise _corrupt(path, f"belongs to slide {info.slide_id}")
    if (info.key, info.recipe_key) != (provenance.key, provenance.recipe_key):
        raise _corrupt(path, "states a key that its provenance does not give")
    return info


def _checked_content(path: Path) -> Json:
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "is not JSON") from error
    if not isinstance(content, dict) or content.get("schema") not in READABLE:
        raise _corrupt(path, f"is not of schema {' or '.join(READABLE)}")
    if data != _sealed(data[:-_SEAL_BYTES]) and data != _sealed_at_first(content):
        raise _corrupt(path, "was changed after it was written")
    del content["schema"], content["self_sha256"]
    return content


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return `content` as JSON lines, of which the last holds the hash of all others."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return _sealed(text.removesuffix("\n}").encode() + b",\n")


def unsealed(data: bytes) -> Json | None:
    """Return what `sealed` was given, or None when a byte of it has changed."""
    if data != _sealed(data[:-_SEAL_BYTES]):
        return None
    content = json.loads(data)
    del content["self_sha256"]
    return content


def _sealed(text: bytes) -> bytes:
    return text + _SEAL % sha256_bytes(text).encode()


def _sealed_at_first(content: Json) -> bytes:
    """Return the text of a sidecar whose hash is that of its values, as it once was.

    Comparing the whole text, not the hash alone, also finds changed spacing or a repeated key.
    """
    values = {name: value for name, value in content.items() if name != "self_sha256"}
    hashed = values | {"self_sha256": sha256_json(values)}
    return json.dumps(hashed, indent=1, ensure_ascii=False).encode() + b"\n"


def _corrupt(path: Path, problem: str) -> BagCorruptError:
    return BagCorruptError(f"{path}: the sidecar {problem} — run `wsi bags verify {path.parent}`")
