"""Names to things: laziness, suggestions, parameters checked before work starts."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest

from wsi.errors import ConfigError, UnknownNameError
from wsi.registry import Registry, suggest

TABLE = {"counter": "collections:Counter", "pen": "wsi.tissue.threshold:od_otsu"}


def registry() -> Registry:
    return Registry("thing", TABLE, "wsi.tests-nobody-uses")


def test_a_name_loads_its_target() -> None:
    import collections

    assert registry().load("counter") is collections.Counter
    assert registry().names() == ["counter", "pen"]


def test_a_name_is_not_imported_before_it_is_loaded(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wsi_lazy_target.py").write_text("value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    lazy = Registry("thing", {"x": "wsi_lazy_target:value"}, "wsi.tests-nobody-uses")
    assert lazy.names() == ["x"]
    assert "wsi_lazy_target" not in sys.modules
    assert lazy.load("x") == 7
    monkeypatch.delitem(sys.modules, "wsi_lazy_target")


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry().load("conter")
    message = str(caught.value)
    assert message.startswith("unknown thing 'conter' (did you mean 'counter'?)")
    assert "pen" in message


def test_settings_are_the_keyword_only_parameters() -> None:
    assert list(registry().settings("pen")) == ["pen"]


@pytest.mark.parametrize(("given", "kept"), [(True, True), ("false", False), (0, False)])
def test_parameters_take_their_annotated_type(given: object, kept: bool) -> None:
    assert registry().check("pen", {"pen": given}) == {"pen": kept}


def test_all_bad_parameters_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        registry().check("pen", {"pn": 1, "pen": "maybe"})
    message = str(caught.value)
    assert "no setting 'pn' (did you mean 'pen'?)" in message
    assert "pen='maybe'" in message


def test_other_packages_add_names_but_never_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    added = [
        importlib.metadata.EntryPoint("deque", "collections:deque", "g"),
        importlib.metadata.EntryPoint("counter", "collections:OrderedDict", "g"),
    ]
    monkeypatch.setattr("wsi.registry.entry_points", lambda group: added if group == "g" else [])
    import collections

    both = Registry("thing", TABLE, "g")
    assert both.names() == ["counter", "pen", "deque"]
    assert both.load("deque") is collections.deque
    assert both.load("counter") is collections.Counter


def test_nothing_near_is_no_suggestion() -> None:
    assert suggest("zzz", ["abmil", "mean"]) == ""


def family(pixels: object, network: str, *, weights: int, scale: float = 1.0) -> None:
    """Stand in for a thing of which there are many."""


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Registry:
    module = ModuleType("wsi_families")
    module.family = family  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wsi_families", module)
    table = {"plain": "collections:Counter", "net:<network>": "wsi_families:family"}
    return Registry("thing", table, "wsi.tests-nobody-uses")


def test_a_family_takes_what_follows_its_prefix(families: Registry) -> None:
    assert families.names() == ["plain", "net:<network>"]
    assert families.load("net:a/b") is family
    assert list(families.settings("net:a/b")) == ["weights", "scale"]
    checked = families.check("net:a/b", {"weights": "3"})
    assert checked == {"network": "a/b", "weights": 3}


def test_a_family_needs_a_name_after_its_prefix(families: Registry) -> None:
    with pytest.raises(UnknownNameError, match="unknown thing 'net:'"):
        families.load("net:")
    with pytest.raises(UnknownNameError, match="put a name in place of"):
        families.check("net:<network>", {"weights": 1})
    with pytest.raises(UnknownNameError, match="did you mean 'net:alpha'"):
        families.load("nte:alpha")


def test_a_setting_without_default_is_asked_for(families: Registry) -> None:
    with pytest.raises(ConfigError, match=r"thing 'net:x' needs weights="):
        families.check("net:x", {"scale": 2})


def test_what_a_family_takes_from_its_name_is_no_setting(families: Registry) -> None:
    with pytest.raises(ConfigError, match="has no setting 'network'"):
        families.check("net:x", {"weights": 1, "network": "y"})
