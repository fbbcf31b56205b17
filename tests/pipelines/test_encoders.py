"""`wsi encoders`: what is here, what can be had, and the check before any slide is opened."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from rich.console import Console as RichConsole

import pipelines.preprocess  # noqa: F401  so that checks are timed, not imports
from pipelines.cli import run_command
from pipelines.console import Console
from pipelines.encoders import ready_encoder
from wsi.specs import Component

Json = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a hub at an address where nothing answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot = tmp_path / "cache" / "models--owkin--phikon" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot / "config.json").write_bytes(b"{}")
    refs = tmp_path / "cache" / "models--owkin--phikon" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    return snapshot


def test_check_says_what_is_here_and_fails_for_what_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["encoders", "check", "phikon", "texture-v1"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:5] == ["name", "cached", "reachable", "gated", "licence"]
    digest = sha256(b"weights").hexdigest()
    assert lines[1][:6] == ["phikon", "yes", "-", "no", "Owkin non-commercial", digest]
    assert lines[2][:2] == ["texture-v1", "yes"]
    began = time.monotonic()
    assert run_command(["encoders", "check", "phikon", "uni"]) == 1
    assert time.monotonic() - began < 5
    said = capsys.readouterr()
    assert "uni\tno\tno\tyes\tCC-BY-NC-ND-4.0" in said.out
    assert "MahmoodLab/UNI" in said.err


def test_check_as_json_carries_the_problem(said_json: Json) -> None:
    rows = {row["name"]: row for row in said_json(["encoders", "check", "phikon", "uni"], code=1)}
    assert rows["phikon"]["problem"] == ""
    assert "texture-v1" in rows["uni"]["problem"]
    assert (rows["uni"]["cached"], rows["uni"]["reachable"]) == (False, False)


def test_pull_takes_what_is_there_and_names_what_is_not(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert run_command(["encoders", "pull", "phikon"]) == 0
    assert str(cache / "model.safetensors") in capsys.readouterr().err
    assert run_command(["encoders", "pull", "uni", "phikon", "texture-v1"]) == 1
    said = capsys.readouterr().err
    assert "MahmoodLab/UNI are not available" in said
    assert "2 encoders ready, 1 not" in said


@pytest.mark.parametrize("command", ["check", "pull"])
def test_nothing_or_nonsense_named_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["encoders", command]) == 2
    assert run_command(["encoders", command, "unii"]) == 2
    assert "did you mean 'uni'" in capsys.readouterr().err


def test_listing_says_what_is_cached_and_seen(said_json: Json) -> None:
    rows = {row["name"]: row for row in said_json(["list", "encoders"])}
    assert {name for name, row in rows.items() if row["cached"]} == {"texture-v1", "phikon"}
    assert rows["uni"]["effective_mpp"] == 0.571
    assert rows["uni"]["gated"]
    assert rows["uni"]["pinned"] == "unpinned"


def test_listing_and_checking_load_no_torch() -> None:
    code = (
        "import sys; from pipelines.cli import run_command;"
        "run_command(['list', 'encoders', '-q']); run_command(['encoders', 'check', 'texture-v1']);"
        "sys.exit(','.join(m for m in ('torch', 'timm', 'transformers') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_a_run_stops_before_any_slide_when_weights_cannot_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_bytes(b"never opened")
    words = ["preprocess", "encoder=uni", "--slides", str(tmp_path / "slides")]
    began = time.monotonic()
    assert run_command([*words, "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert said.startswith("error[ENCODER]: encoder uni: the weights of MahmoodLab/UNI")
    assert str(tmp_path / "cache") in said
    assert not (tmp_path / "out" / "slides.csv").exists()


def test_random_weights_are_warned_of_before_work_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    random = Component.model_validate({"name": "resnet50", "weights": "random"})
    console = Console(_people=RichConsole(stderr=True, soft_wrap=True))
    ready_encoder(random, console)
    assert "random weights, never trained" in capsys.readouterr().err
    ready_encoder(Component(name="texture-v1"), console)
    assert capsys.readouterr().err == ""
