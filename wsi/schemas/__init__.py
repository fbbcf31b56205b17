"""JSON Schemas (draft 2020-12) of what results are written as, by name."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal, get_args

SchemaName = Literal["metrics", "predictions", "comparison"]
NAMES: tuple[SchemaName, ...] = get_args(SchemaName)


def read_schema(name: SchemaName) -> dict[str, Any]:
    """Return a schema: of metrics.json, comparison.json, or the sidecar predictions.json."""
    return json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
