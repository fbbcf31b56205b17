"""The JSON file beside each bag: what makes the bag exist for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsi.bags.bag import READABLE, SCHEMA, Json, Provenance
from wsi.errors import BagCorruptError, WsiError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish_bytes, sha256_json

SUFFIX = ".json"


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
    paths = root.glob(f"*{SUFFIX}") if root.is_dir() else ()
    return sorted(path for path in paths if not path.name.startswith(TEMPORARY_PREFIX))


def write_sidecar(root: Path, info: BagInfo) -> None:
    """Publish `info`; from then on its bag exists."""
    content = asdict(info) | {"provenance": info.provenance.to_json()}
    publish_bytes(sidecar_path(root, info.slide_id), _render({"schema": SCHEMA, **content}))


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
    content.pop("self_sha256", None)
    # Comparing the whole text, not the hash alone, also finds changed spacing or a repeated key.
    if _render(content) != data:
        raise _corrupt(path, "was changed after it was written")
    content.pop("schema")
    return content


def _render(content: Mapping[str, Any]) -> bytes:
    hashed = {**content, "self_sha256": sha256_json(content)}
    return json.dumps(hashed, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _corrupt(path: Path, problem: str) -> BagCorruptError:
    return BagCorruptError(f"{path}: the sidecar {problem} — run `wsi bags verify {path.parent}`")
