"""Names to things: laziness, suggestions, parameters checked before work starts."""

from __future__ import annotations

import importlib.metadata
import sys

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
