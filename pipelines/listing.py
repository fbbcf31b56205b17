"""`wsi list` and `wsi config schema`: what can be named and set."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipelines.console import Console
from wsi.aggregators import AGGREGATORS
from wsi.bags import STORES
from wsi.cohorts import COHORTS
from wsi.encoders import CATALOG, ENCODERS
from wsi.objectives import OBJECTIVES
from wsi.registry import Registry
from wsi.slides import READERS
from wsi.specs import Component, Config
from wsi.stain import STAINS
from wsi.tissue import METHODS

_REGISTRIES: dict[str, Registry] = {
    "aggregators": AGGREGATORS,
    "objectives": OBJECTIVES,
    "tissue": METHODS,
    "stains": STAINS,
    "readers": READERS,
    "cohorts": COHORTS,
    "stores": STORES,
}


def run(what: str, console: Console) -> int:
    """Print all things of a kind."""
    rows = list(_rows(what))
    console.table(list(rows[0]), (list(row.values()) for row in rows), what)
    console.result(rows)
    if what == "encoders":
        console.say("also: timm:<model> and hf-hub:<org>/<model>, any model that timm can load")
    return 0


def schema(console: Console) -> int:
    """Print every setting with type, default and meaning."""
    console.result(Config.model_json_schema())
    rows = list(_settings(Config))
    console.table(["setting", "default", "type", "meaning"], rows, "settings")
    return 0


def _rows(what: str) -> Iterator[dict[str, Any]]:
    if what == "encoders":
        yield from _encoders()
    elif what == "metrics":
        from wsi.evaluation import METRICS

        for metric in METRICS.values():
            better = "higher is better" if metric.higher_is_better else "lower is better"
            yield {"name": metric.name, "title": metric.title, "of": metric.of, "note": better}
    else:
        registry = _REGISTRIES[what]
        for name in registry.names():
            thing = registry.load(name)
            hints = get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
            meant = getattr(thing, "when_not_given", {})
            settings = [
                _setting(p, hints.get(p.name, Any), meant.get(p.name))
                for p in registry.settings(name).values()
            ]
            summary = (thing.__doc__ or "").strip().splitlines()[0]
            yield {"name": name, "summary": summary, "settings": ", ".join(settings)}


def _encoders() -> Iterator[dict[str, Any]]:
    from wsi.encoders.available import availability

    for name in dict.fromkeys([*CATALOG, *ENCODERS.names()]):
        row = CATALOG.get(name)
        yield {
            "name": name,
            "dim": row and row.dim,
            "tile_px": row and row.tile_px,
            "mpp": row and row.mpp,
            "effective_mpp": row and round(row.effective_mpp, 3),
            "licence": row and row.licence,
            "gated": row and row.gated,
            "cached": availability(Component(name=name), ask=False).cached,
            "pinned": row and row.pin,
            "source": row.load if row else "another package",
            "note": row.note if row else "",
        }


def _setting(parameter: inspect.Parameter, annotation: Any, meant: str | None) -> str:
    """Return name, default and type; `meant` says what a default of None stands for."""
    if meant is not None and parameter.default is None:
        words = " | ".join(_type(each) for each in get_args(annotation) if each is not NoneType)
        sign = "=" if " " not in meant else ": "
        return f"{parameter.name}{sign}{meant} ({words})"
    type_name = _type(annotation)
    if parameter.default is parameter.empty:
        return f"{parameter.name} ({type_name}, needed)"
    return f"{parameter.name}={parameter.default} ({type_name})"


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        nested = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if nested and annotation is not Component:
            yield from _settings(annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        default = "" if default is PydanticUndefined else default
        default = default.name if isinstance(default, Component) else default
        yield [prefix + name, str(default), _type(annotation), field.description or ""]


def _type(annotation: Any) -> str:
    """Return a type in plain words: `number`, `h5 | zarr`, `list of text`."""
    if isinstance(annotation, Component) or annotation is Component:
        return "name, or {name: ..., parameters}"
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin in (tuple, list):
        fixed = origin is tuple and Ellipsis not in arguments
        size = f"{len(arguments)} x " if fixed else "list of "
        return f"{size}{_type(arguments[0])}"
    return _WORDS.get(annotation, str(annotation))


_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true | false",
    Path: "path",
    NoneType: "none",
}
