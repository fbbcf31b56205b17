"""From a preset or file and `key=value` words to a checked `Config`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from wsi.aggregators import AGGREGATORS
from wsi.encoders import check_encoder_name
from wsi.errors import ConfigError, UnknownNameError, WsiError
from wsi.objectives import OBJECTIVES
from wsi.registry import Registry, suggest
from wsi.specs import Component, Config
from wsi.stain import STAINS
from wsi.tissue import METHODS

FOREIGN = {
    "patch_size": "tiling.tile_px",
    "tile_size": "tiling.tile_px",
    "mag": "tiling.mpp, in um per pixel: mag=20 is tiling.mpp=0.5, mag=40 is 0.25",
    "magnification": "tiling.mpp, in um per pixel: 20x is tiling.mpp=0.5, 40x is 0.25",
    "overlap": "tiling.stride, in um between tiles",
    "step": "tiling.stride, in um between tiles",
    "step_size": "tiling.stride, in um between tiles",
    "batch_size": "fit.bags_per_step",
    "loss": "objective",
    "model": "aggregator",
    "max_epochs": "fit.epochs",
    "reg": "fit.weight_decay",
    "patch_encoder": "encoder",
    "loco": "split.kind=leave-one-site-out",
    "center": "the site column of the cohort table",
    "k": "split.folds",
}
"""Words of other tools, and ours for them."""

_COMPONENTS: dict[str, Registry] = {
    "aggregator": AGGREGATORS,
    "objective": OBJECTIVES,
    "tissue.method": METHODS,
    "pixels.stain": STAINS,
}


TRAINING = ("data", "split", "aggregator", "objective", "fit", "evaluate", "study", "sweep")
"""Settings that make no bag: of labels, models and results."""


def presets_folder() -> Path:
    """Return the folder of presets: beside the package in a wheel, in the repository else."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def presets() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def load_config(words: Sequence[str] = (), base: dict[str, Any] | None = None) -> Config:
    """Return the settings that `words` describe: at most one preset or file, then overrides.

    Args:
        base: settings that all of these come on top of.

    Raises:
        ConfigError: every problem at once: unknown keys, wrong types, unknown names.
    """
    sources = [word for word in words if "=" not in word]
    if len(sources) > 1:
        raise ConfigError(
            f"'{sources[1]}' is neither key=value nor the first config — "
            "give at most one preset or file, and settings as key=value"
        )
    data = _merged(base or {}, _read(sources[0]) if sources else {})
    for word in words:
        if "=" in word:
            key, _, text = word.partition("=")
            _assign(data, key.strip(), _value(key, text))
    return check_config(data)


def paths_and_settings(words: Sequence[str]) -> tuple[tuple[Path, ...], list[str]]:
    """Return the paths among words of a command line, and the rest: settings and YAML files.

    A setting is `key=value` with a key like ours, misspelt or not, unless there is such a file.
    """
    rest = [word for word in words if _is_setting(word) or _is_yaml(word)]
    return tuple(Path(word) for word in words if word not in rest), rest


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+(\.\w+)*", key):
        return False
    known = "." in key or key in Config.model_fields or key in FOREIGN
    return known and not os.path.lexists(word)  # which, unlike Path.exists, takes any length


def _is_yaml(word: str) -> bool:
    return Path(word).suffix.lower() in (".yaml", ".yml")


def together(*groups: Sequence[str]) -> list[str]:
    """Return settings given in several places of a command line.

    Raises:
        ConfigError: a setting stands in two places with two values; their order is not known.
    """
    given: dict[str, str] = {}
    for group in groups:
        for key, word in {word.partition("=")[0]: word for word in group}.items():
            if given.setdefault(key, word) != word:
                raise ConfigError(f"{given[key]} and {word} are both given — keep one of them")
    return [word for group in groups for word in group]


def idle_in_preprocessing(words: Sequence[str]) -> str | None:
    """Return a line that names the settings among `words` that act in training only, or None."""
    keys = dict.fromkeys(word.partition("=")[0].strip() for word in words if "=" in word)
    idle = [key for key in keys if key.partition(".")[0] in TRAINING]
    if not idle:
        return None
    verb, them = ("acts", "it") if len(idle) == 1 else ("act", "them")
    return f"{', '.join(idle)} {verb} in training only — give {them} to wsi train"


def check_config(data: dict[str, Any]) -> Config:
    """Return `data` as a Config, or raise ConfigError listing all that is wrong with it."""
    problems = []
    config = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems = _problems(error)
    problems += [str(error) for error in _unknown_names(data)]
    if problems or config is None:
        raise ConfigError(_listed(problems))
    return config


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the settings with others for some dotted keys.

    A component given as a whole comes before settings inside it, and replaces what it had.

    Raises:
        ConfigError: a key is unknown, or a value not allowed; all problems are listed.
    """
    data = config.model_dump(mode="json")
    for key in sorted(values, key=lambda key: key.count(".")):
        _assign(data, key, values[key])
    return check_config(data)


def as_yaml(config: Config) -> str:
    """Return all settings as YAML that `load_config` reads back."""
    from io import StringIO

    stream = StringIO()
    yaml = YAML()
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def write_config(config: Config, path: Path) -> None:
    """Write all settings to `path`."""
    from wsi.files import publish_bytes

    publish_bytes(path, as_yaml(config).encode())


def read_config(path: Path) -> Config:
    """Return the settings of a file written by `write_config`, or by hand."""
    return check_config(_read(str(path)))


def _read(source: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        path = presets_folder() / f"{source}.yaml"
    if not path.is_file():
        known = presets()
        raise ConfigError(
            f"'{source}' is neither a config file nor a preset{suggest(source, known)} — "
            f"presets: {', '.join(known)}"
        )
    data = _parsed(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if seen or not isinstance(parent, str):
        raise ConfigError(f"{path.name}: extends must name one parent that extends nothing itself")
    beside = path.parent / parent
    return _merged(_read(str(beside) if beside.is_file() else parent, (*seen, source)), data)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except (YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{path.name} is not valid YAML: {line} — correct the file") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path.name}: a config is a mapping of settings, not a {type(data).__name__}"
        )
    return data


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _value(key: str, text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise ConfigError(f"{key}={text}: the value is not valid YAML — quote it") from None


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    here = data
    for depth, name in enumerate(parents):
        below: Any = here.get(name)
        if not isinstance(below, dict):
            # `objective.temperature=1` after `objective: ncmi`, or on top of the default.
            default = _default(".".join(parents[: depth + 1]))
            below = here[name] = {"name": below} if isinstance(below, str) else default
        here = below
    here[last] = value


def _default(path: str) -> dict[str, Any]:
    model: Any = Config()
    for name in path.split("."):
        model = getattr(model, name, None)
    return {"name": model.name} if isinstance(model, Component) else {}


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the settings."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if (
            isinstance(annotation, type)
            and issubclass(annotation, BaseModel)
            and (annotation is not Component)
        ):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _problems(error: ValidationError) -> list[str]:
    """Return one line per setting; every type that a value may have says its own reason."""
    reasons: dict[str, list[str]] = {}
    for item in (leaf for each in error.errors() for leaf in _leaves(each)):
        subject, reason = _problem(item)
        reasons.setdefault(subject, []).append(reason)
    return [f"{subject}{', or: '.join(told)}" for subject, told in reasons.items()]


def _leaves(item: Any) -> Iterator[Any]:
    """Yield an error, of an unknown section one for each of its settings."""
    value = item["input"]
    if item["type"] != "extra_forbidden" or not isinstance(value, dict) or not value:
        yield item
        return
    for key, inner in value.items():
        yield from _leaves({**item, "loc": (*item["loc"], key), "input": inner})


def _problem(item: Any) -> tuple[str, str]:
    path = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
    if item["type"] == "extra_forbidden":
        return f"unknown setting '{path}'", _near_key(path)
    reason = item["msg"].removeprefix("Value error, ")
    if path in TRAINING and isinstance(item["input"], list | tuple):
        reason += (
            f" — `wsi study` compares several: study.arms=[{','.join(map(str, item['input']))}]"
        )
    known = set(keys())
    if path in {key.rpartition(".")[0] for key in known} and reason.split("=")[0].split()[0] in (
        key.removeprefix(f"{path}.") for key in known
    ):
        return f"{path}.", reason  # of settings together, which the reason begins with
    path = (
        path if path in known or path.rpartition(".")[0] not in known else path.rpartition(".")[0]
    )
    return (f"{path}={_short(item['input'])}: " if path else ""), reason


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def _near_key(path: str) -> str:
    section, _, leaf = path.rpartition(".")
    if leaf in FOREIGN:
        return f" — here it is {FOREIGN[leaf]}"
    known = [*keys(), *_parameters(section)]
    # Before the same word elsewhere: fit.seed means fit.seeds, not split.seed.
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    spelt = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.8) if section else []
    if spelt:
        return f" (did you mean '{section}.{spelt[0]}'?)"
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    if same_leaf:
        return f" (did you mean '{same_leaf[0]}'?)"
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    leaves = {key.rpartition(".")[2]: key for key in known}
    near = near or [leaves[n] for n in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f" (did you mean '{near[0]}'?)" if near else " — see `wsi config schema`"


def _parameters(section: str) -> Iterator[str]:
    """Yield the keys of the parameters that the components of a section may have."""
    for path, registry in _COMPONENTS.items():
        if "." in path and section in ("", path.partition(".")[0]):
            names = dict.fromkeys(p for n in registry.names() for p in registry.settings(n))
            yield from (f"{path}.{name}" for name in names)


def _unknown_names(data: dict[str, Any]) -> Iterator[WsiError]:
    for path, registry in _COMPONENTS.items():
        name = _component_name(data, path)
        try:
            if name is not None:
                registry.entry(name)
        except UnknownNameError as error:
            yield error
    encoder = _component_name(data, "encoder")
    try:
        if encoder is not None:
            check_encoder_name(encoder)
    except UnknownNameError as error:
        yield error


def _component_name(data: dict[str, Any], path: str) -> str | None:
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("name")
    return value if isinstance(value, str) else None


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the settings:" + "".join(f"\n  {p}" for p in problems)
