"""`wsi list` and `wsi config`: what can be named and set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipelines.cli import run_command
from pipelines.config import keys, load_config
from wsi.aggregators import AGGREGATORS
from wsi.bags import STORES
from wsi.encoders import CATALOG
from wsi.evaluation import METRICS
from wsi.objectives import OBJECTIVES
from wsi.objectives.ncmi_settings import NCMISettings
from wsi.registry import Registry
from wsi.slides import READERS
from wsi.tissue import METHODS

Json = Callable[..., Any]

REGISTRIES: dict[str, Registry] = {
    "aggregators": AGGREGATORS,
    "objectives": OBJECTIVES,
    "tissue": METHODS,
    "readers": READERS,
    "stores": STORES,
}


@pytest.mark.parametrize("what", REGISTRIES)
def test_all_names_are_listed_with_every_setting_and_default(what: str, said_json: Json) -> None:
    listed = {row["name"]: row for row in said_json(["list", what])}
    assert list(listed) == REGISTRIES[what].names()
    for name, row in listed.items():
        assert row["summary"].endswith((".", ":")), f"{name} does not say what it is"
        meant = getattr(REGISTRIES[what].load(name), "when_not_given", {})
        parameters = inspect.signature(REGISTRIES[what].load(name)).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                needed = parameter.default is parameter.empty
                shown = "weights (path, needed)" if needed else f"={parameter.default}"
                if parameter.default is None and parameter.name in meant:
                    shown = meant[parameter.name]
                assert parameter.name in row["settings"]
                assert shown in row["settings"]


def test_encoders_are_listed_with_size_licence_and_gate(
    capsys: pytest.CaptureFixture[str], said_json: Json
) -> None:
    listed = {row["name"]: row for row in said_json(["list", "encoders"])}
    assert set(listed) == set(CATALOG)
    assert listed["resnet50"]["dim"] == 1024  # of its third stage, as CLAM takes it
    assert all(row["licence"] for row in listed.values())
    assert run_command(["list", "encoders"]) == 0
    assert "timm:<model>" in capsys.readouterr().err


def test_metrics_say_which_way_is_better(said_json: Json) -> None:
    listed = {row["name"]: row["note"] for row in said_json(["list", "metrics"])}
    assert set(listed) == set(METRICS)
    lower = {name for name, note in listed.items() if note == "lower is better"}
    assert lower == {"nll", "brier", "ece"}


def test_lists_are_tab_separated_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["list", "aggregators"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "summary", "settings"]
    assert [line[0] for line in lines[1:]] == AGGREGATORS.names()


@pytest.mark.parametrize(
    "words", [[], ["demo"], ["demo", "objective=ncmi", "fit.seeds=3", "data.classes=[NO, b]"]]
)
def test_shown_settings_can_be_given_back(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["config", "show", *words]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config([str(path)]) == load_config(words)
    shown = YAML(typ="safe").load(path.read_text())["objective"]
    assert (shown["name"] == "ncmi") == ("objective=ncmi" in words)


def test_every_setting_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "schema"]) == 0
    header, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == ["setting", "default", "type", "meaning"]
    assert [line[0] for line in lines] == list(keys())
    shown = {line[0]: line[1] for line in lines}
    assert shown["fit.epochs"] == "30"
    assert shown["objective"] == "ce"


def test_the_schema_is_one_of_json(said_json: Json) -> None:
    schema = said_json(["config", "schema"])
    assert schema["type"] == "object"
    assert set(schema["properties"]) == {key.partition(".")[0] for key in keys()}
    assert schema["additionalProperties"] is False


def test_defaults_that_are_settled_later_are_listed_as_what_they_are(said_json: Json) -> None:
    rows = {row["name"]: row["settings"] for row in said_json(["list", "objectives"])}
    assert "None" not in "".join(rows.values())
    settled = NCMISettings().resolved(3, 64, official=False)
    for name in ("form", "centroids", "prototypes", "simplex", "temperature", "center"):
        assert f"{name}={settled[name]} (" in rows["ncmi"]
    assert f"center_momentum={settled['center_momentum']:g} (" in rows["ncmi"]
    assert f"centroid_momentum={settled['centroid_momentum']:g} (" in rows["ncmi"]
    assert "center=none (none | fixed | ema)" in rows["hybrid"]
    assert "m: max(32, 4 C) (whole number)" in rows["cosine_pc"]
