"""Writes the reference pages that must not go stale: the settings and the command line.

    python docs/generate.py

A test compares the committed pages with what this would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pipelines.cli import app
from wsi.aggregators import AGGREGATORS
from wsi.encoders import CATALOG
from wsi.evaluation import METRICS
from wsi.objectives import OBJECTIVES
from wsi.registry import Registry
from wsi.specs import Config
from wsi.stain import STAINS
from wsi.tissue import METHODS

REFERENCE = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by docs/generate.py; change the source instead. -->"

_SETTINGS_INTRO = """\
# Settings

Every setting, with its type, default and meaning. Write settings as `key=value` words after a
command, or as YAML in a file that comes first:

```sh
wsi preprocess --slides SLIDES --out OUT tiling.mpp=0.5 tissue.min_area_mm2=0.01
wsi config show demo fit.epochs=50
```

A YAML file may name one parent with `extends: demo`, a preset or a file beside it. Words are read
as YAML 1.2: `1e-3` is a number, `NO` a word, `null` or nothing means that a setting is not given.
A key that does not exist is an error that names the nearest one.
"""

_COMPONENT_INTRO = """\
`{key}={name}` names one, `{key}={name} {key}.{setting}={value}` also changes one of its settings.
In YAML a name stands alone, or with its settings: `{key}: {{name: {name}, {setting}: {value}}}`.
"""

_ENCODERS_INTRO = """\
Besides these, `timm:<model>` and `hf-hub:<org>/<model>` name any model that timm can load, with
`encoder.pooling` (`default`, `cls`, `mean`, `cls+mean`, `layer3`). Networks take

- `encoder.weights`: `pretrained`, `random` (never trained, for tests; `encoder.seed` draws others),
  or the path of a file or of a folder as the hub lays it out;
- `encoder.sha256`: 64 hexadecimal digits that the file of weights must have.

See [how to use encoders](../how-to/encoders.md).
"""

_CLI_INTRO = """\
# Command line

Every command also takes `--json` (one JSON document on stdout in place of tables), `--quiet` or
`-q` (say only what went wrong), `--verbose` or `-v` (say more), `--debug` (show the traceback of an
error) and `--help`. People are spoken to on stderr; results go to stdout.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | the command line or a setting is wrong |
| 3 | finished, but some slides were left out |
| 4 | disk or memory ran out; a rerun goes on |
| 5 | what the data say is wrong: leakage, contradicted labels, damaged or mixed bags |
| 130, 143 | interrupted; the same command goes on |
"""

_TABLE, _TABLE_END = "<!-- table -->", "<!-- end of table -->"
_COMMON = ("* `--json`", "* `--quiet", "* `--verbose", "* `--debug`")


def pages() -> dict[str, str]:
    """Return the text of each generated page by its file name."""
    return {"settings.md": settings_page(), "cli.md": cli_page(), "metrics.md": metrics_page()}


_AVERAGES = {
    "declared": "all declared",
    "present": "those with slides",
    "separable": "those with slides, where others have some too",
    "none": "",
}


def metrics_page() -> str:
    """Return the hand-written reference of metrics with the table of all of them made anew."""
    text = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(_TABLE)
    after = rest.partition(_TABLE_END)[2]
    return before + _TABLE + "\n" + metrics_table() + _TABLE_END + after


def metrics_table() -> str:
    """Return the table of all metrics."""
    rows = ["| name | metric | over folds | mean over classes | better |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        folds = "pooled" if metric.of == "decisions" else "mean"
        better = "higher" if metric.higher_is_better else "lower"
        link = f"[`{metric.name}`](#{_anchor(f'{metric.name}: {metric.title}')})"
        rows.append(
            f"| {link} | {metric.title} | {folds} | {_AVERAGES[metric.averages]} | {better} |"
        )
    return "\n".join(rows) + "\n"


def _anchor(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def settings_page() -> str:
    """Return the reference of all settings and named things."""
    schema = Config.model_json_schema()
    parts = [NOTICE, _SETTINGS_INTRO, *_sections(schema)]
    parts += _components("aggregator", AGGREGATORS, "Aggregators", "hidden=128")
    parts += _components("objective", OBJECTIVES, "Objectives", "weight=balanced")
    parts += _components("tissue.method", METHODS, "Tissue methods", "pen=false")
    parts += _components("pixels.stain", STAINS, "Stain normalisation", "target=region.png")
    parts += [_encoders(), _metrics()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def cli_page() -> str:
    """Return the reference of all commands, as the commands describe themselves."""
    text = app.generate_docs(output_format="markdown")
    _, _, commands = text.partition("\n## wsi demo\n")
    kept = [line for line in commands.splitlines() if not line.startswith(_COMMON)]
    body = "\n".join(kept).replace(" *[default: False]*", "")
    body = re.sub(r", --(empty|no)-[\w-]+`", "`", body)
    body = re.sub(r"\*\*Parameters\*\*:\n+(?=#|\Z)", "", body + "\n")
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"{NOTICE}\n\n{_CLI_INTRO}\n## wsi demo\n{body.rstrip()}\n"


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the settings without a section, then one table per section."""
    top, below = {}, {}
    for name, field in schema["properties"].items():
        target = _resolved(field, schema)
        (below if "Spec" in target.get("title", "") else top)[name] = field
    yield "## What is used\n\n" + _table(_rows(top, schema, ""))
    for name, field in below.items():
        target = _resolved(field, schema)
        yield f"## {name}\n\n{target['description']}\n\n" + _table(
            _rows(target["properties"], schema, f"{name}.")
        )


def _rows(
    properties: Mapping[str, Any], schema: Mapping[str, Any], prefix: str
) -> Iterator[list[str]]:
    for name, field in properties.items():
        target = _resolved(field, schema)
        if "Spec" in target.get("title", ""):
            yield from _rows(target["properties"], schema, f"{prefix}{name}.")
            continue
        meaning = _plain(field.get("description", ""))
        yield [f"`{prefix}{name}`", _type(target), _default(field.get("default")), meaning]


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref", "")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else field


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if "$ref" in field:
        return "name, with settings"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if isinstance(field.get("additionalProperties"), dict):
        return "a mapping"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}".replace("number", "numbers")
    words = {
        "boolean": "true or false",
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "object": "name, with settings",
        "null": "not given",
    }
    return words[field["type"]] + _bounds(field)


def _bounds(field: Mapping[str, Any]) -> str:
    said = [
        (" at least ", field.get("minimum")),
        (" above ", field.get("exclusiveMinimum")),
        (" at most ", field.get("maximum")),
        (" below ", field.get("exclusiveMaximum")),
    ]
    return ",".join(f"{word}{value:g}" for word, value in said if value is not None)


def _default(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("name")
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _components(key: str, registry: Registry, title: str, example: str) -> Iterator[str]:
    names = registry.names()
    setting, _, value = example.partition("=")
    intro = _COMPONENT_INTRO.format(key=key, name=names[0], setting=setting, value=value)
    yield f"## {title}\n\n{intro}"
    for name in names:
        thing = registry.load(name)
        documentation = inspect.getdoc(thing) or ""
        yield f"### {name}\n\n{_plain(documentation.partition(chr(10))[0])}"
        told = {}
        for base in reversed(inspect.getmro(thing) if inspect.isclass(thing) else [thing]):
            told |= _arguments(inspect.cleandoc(base.__doc__ or ""))
        rows = [
            [
                f"`{key}.{p.name}`",
                _code(_bare(registry.load(name), p)),
                _default_of(registry.load(name), p),
                told.get(p.name, ""),
            ]
            for p in registry.settings(name).values()
        ]
        if rows:
            yield _table(rows)


def _default_of(thing: Any, parameter: inspect.Parameter) -> str:
    """Return a parameter's default; what None stands for, where the thing says so."""
    if parameter.default is parameter.empty:
        return "needed"
    meant = getattr(thing, "when_not_given", {}).get(parameter.name)
    if parameter.default is None and meant:
        return meant if " " in meant else f"`{meant}`"
    return _default(parameter.default)


def _bare(thing: Any, parameter: inspect.Parameter) -> Any:
    """Return a parameter's annotation, or the type below it where it is an alias with limits."""
    hint = get_type_hints(thing.__init__ if inspect.isclass(thing) else thing).get(parameter.name)
    shown = str(parameter.annotation)
    alias = shown.isidentifier() and shown != getattr(hint, "__name__", "")
    return hint if alias or shown.startswith("Annotated[") else shown


def _code(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = text.removeprefix("pathlib.")
    return f"`{text}`".replace("|", "\\|")


def _arguments(documentation: str) -> dict[str, str]:
    """Return what a Google-style docstring says of each argument."""
    _, _, section = documentation.partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", section, flags=re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for name, text in found}


def _plain(text: str) -> str:
    """Return text that Markdown shows as it stands, also in a table; code stays code."""
    pieces = text.replace("|", "\\|").split("`")
    shown = [piece.replace("<", "&lt;") for piece in pieces[::2]]
    pieces[::2] = [re.sub(r"([_*])", r"\\\1", piece) for piece in shown]
    return "`".join(pieces)


def _encoders() -> str:
    rows = [
        [
            f"`{r.name}`",
            str(r.dim),
            f"{r.tile_px} px, {r.mpp:g} um/px",
            f"{r.effective_mpp:.3g}",
            r.pooling,
            f"{r.licence}{', gated' if r.gated else ''}",
            f"`{r.load}`, {r.pin}",
            _plain(r.note),
        ]
        for r in CATALOG.values()
    ]
    header = [
        "name",
        "features",
        "made for",
        "sees, um/px",
        "pooling",
        "licence",
        "weights",
        "note",
    ]
    return f"## Encoders\n\n{_ENCODERS_INTRO}\n{_table(rows, header)}"


def _metrics() -> str:
    rows = [
        [
            f"`{m.name}`",
            m.title,
            "pooled over folds" if m.of == "decisions" else "mean over folds",
            "higher" if m.higher_is_better else "lower",
        ]
        for m in METRICS.values()
    ]
    return "## Metrics\n\n" + _table(rows, ["name", "meaning", "folds", "better"])


def _table(rows: Any, header: list[str] | None = None) -> str:
    header = header or ["setting", "type", "default", "meaning"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
