"""Whether weights can be had: cached, local, served, gated, silent, offline."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from wsi.encoders import CATALOG, hub, load_encoder
from wsi.encoders.available import availability, preflight, pull
from wsi.errors import EncoderError, UnknownNameError
from wsi.specs import Component


def component(name: str, **params: object) -> Component:
    return Component.model_validate({"name": name, **params})


@pytest.mark.parametrize("name", ["uni", "phikon", "resnet50", "hf-hub:org/model"])
def test_weights_out_of_reach_fail_in_seconds_with_every_way_on(no_hub: Path, name: str) -> None:
    began = time.monotonic()
    with pytest.raises(EncoderError) as caught:
        preflight(component(name))
    assert time.monotonic() - began < 5
    repo = CATALOG[name].repo if name in CATALOG else "org/model"
    for part in (name, f"{constants.ENDPOINT}/{repo}", str(no_hub), "encoder=texture-v1"):
        assert str(part) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_never_answers_is_given_up(
    no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub._DEADLINE_S < 5
    monkeypatch.setattr(hub, "_DEADLINE_S", 0.2)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *args, **kwargs: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(EncoderError, match=r"no answer within 0\.2 s"):
        preflight(component("uni"))
    assert time.monotonic() - began < 2


def test_offline_nothing_is_asked(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set"):
        preflight(component("uni"))


@pytest.mark.parametrize(
    ("token", "advice"), [(None, "there is no token"), ("hf_x", "token has no access")]
)
def test_gated_weights_say_what_is_missing(
    hub_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, token: str | None, advice: str
) -> None:
    hub_files["MahmoodLab/UNI/model.safetensors"] = b"for those alone who asked"
    monkeypatch.setattr(hub, "get_token", lambda: token)
    found = availability(component("uni"))
    assert not found.cached
    assert found.reachable is False
    assert "it is gated" in found.problem
    assert advice in found.problem


def test_cached_weights_need_no_network(cache_files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache_files("MahmoodLab/UNI", {"pytorch_model.bin": b"x"})
    assert not availability(component("uni")).cached  # its configuration is needed, too
    cache_files("MahmoodLab/UNI", {"config.json": b"{}"})
    found = preflight(component("uni"))
    assert found.cached
    assert found.path is not None
    assert found.path.name == "pytorch_model.bin"
    assert found.reachable is None


def test_the_pinned_commit_comes_first_and_the_newest_will_do(cache_files) -> None:
    pinned = CATALOG["lunit-s8"].revision
    assert pinned
    repo = "1aurent/vit_small_patch8_224.lunit_dino"
    newest = cache_files(repo, {"model.safetensors": b"new", "config.json": b""}, commit="1" * 40)
    assert availability(component("lunit-s8")).path == newest / "model.safetensors"
    old = cache_files(
        repo, {"model.safetensors": b"old", "config.json": b""}, commit=pinned, ref=""
    )
    assert availability(component("lunit-s8")).path == old / "model.safetensors"


def test_weights_that_the_hub_hands_out_are_reachable_and_pulled_once(
    hub_files: dict[str, bytes], no_hub: Path
) -> None:
    hub_files["MahmoodLab/UNI/pytorch_model.bin"] = b"weights"
    hub_files["MahmoodLab/UNI/config.json"] = b"{}"
    found = preflight(component("uni"))
    assert (found.cached, found.reachable) == (False, True)
    path = pull(component("uni"))
    assert path is not None
    assert path.read_bytes() == b"weights"
    assert (path.parent / "config.json").read_bytes() == b"{}"
    assert no_hub in path.parents
    hub_files.clear()
    assert pull(component("uni")) == path


def test_a_repository_without_weights_is_not_available(hub_files: dict[str, bytes]) -> None:
    hub_files["MahmoodLab/UNI/README.md"] = b"x"
    found = availability(component("uni"))
    assert found.reachable is False
    assert "no weights of a usual name" in found.problem


def test_local_weights_are_all_that_is_needed(no_hub: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    for given in (tmp_path, tmp_path / "model.safetensors"):
        found = preflight(component("uni", weights=str(given)))
        assert found.path == tmp_path / "model.safetensors"
    for bad, message in ((tmp_path / "absent", "no such file"), (no_hub, "no such file")):
        with pytest.raises(EncoderError, match=message):
            preflight(component("uni", weights=str(bad)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"empty has none of model\.safetensors"):
        preflight(component("uni", weights=str(tmp_path / "empty")))


def test_what_needs_no_weights_is_always_available(no_hub: Path) -> None:
    assert preflight(component("texture-v1")).cached
    assert preflight(component("resnet50", weights="random")).cached
    assert pull(component("texture-v1")) is None


def test_a_package_that_is_missing_is_told_before_work_starts(
    no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for check in (preflight, load_encoder):
        for params in ({}, {"weights": "random"}):
            with pytest.raises(EncoderError, match=r"pip install transformers"):
                check(component("phikon", **params))


def test_a_misspelt_name_is_told_first(no_hub: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'uni2-h'"):
        preflight(component("uni2h"))


def test_asking_what_is_cached_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from wsi.encoders import CATALOG; from wsi.specs import Component;"
        "from wsi.encoders.available import availability;"
        "[availability(Component(name=n), ask=False) for n in CATALOG];"
        "print([m for m in ('torch', 'timm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
