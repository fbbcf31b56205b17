"""What the documentation says is held against the program: commands, settings, links, paths."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

import wsi
from pipelines.cli import app
from pipelines.config import load_config
from wsi import errors
from wsi.aggregators import AGGREGATORS
from wsi.bags import Bag, Provenance, create_store
from wsi.objectives import OBJECTIVES
from wsi.slides.dress import pyramid, write_slide
from wsi.tissue import METHODS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + list((ROOT / "docs").rglob("*.md"))
)
DEMO = (
    "python3 -m venv .venv && .venv/bin/pip install -q uv && .venv/bin/uv pip install -q "
    "--python .venv/bin/python -c constraints.txt -e . && .venv/bin/wsi demo"
)
TESTS = DEMO.replace("-e . && .venv/bin/wsi demo", "-e . --group dev && .venv/bin/pytest -n 2")

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of every fenced block."""
    return [(m[1], m[2]) for m in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def inline(page: Path) -> Iterator[str]:
    """Yield all inline code outside fenced blocks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (m[1] for m in re.finditer(r"`([^`\n]+)`", text))


def shell_lines(page: Path) -> list[str]:
    text = "".join(body for language, body in blocks(page) if language == "sh")
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def generator() -> ModuleType:
    """Return docs/generate.py, which is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def known_options() -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", app.generate_docs(output_format="markdown")))


def check_settings(words: Sequence[str]) -> None:
    """Raise unless the settings are valid, those of the things they name too."""
    config = load_config(words)
    AGGREGATORS.check(config.aggregator.name, config.aggregator.params)
    OBJECTIVES.check(config.objective.name, config.objective.params)
    METHODS.check(config.tissue.method.name, config.tissue.method.params)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the Python in the docs names: slide.tiff and OUT/bags."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    level0 = rng.integers(100, 200, (1536, 1536, 3), dtype=np.uint8)
    write_slide(folder / "slide.tiff", pyramid(level0, 2), mpp=0.25)
    made = Provenance(
        slide={"fingerprint": "f" * 64, "mpp": [0.5, 0.5]},
        tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
        encoder={"fingerprint": "e" * 64, "name": "texture-v1"},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float16",
    )
    features = rng.normal(size=(5, 98)).astype(np.float16)
    bag = Bag("a", features, np.zeros((5, 2), np.int32), np.ones(5, np.float16), made)
    create_store(folder / "OUT" / "bags" / "texture-v1_0.5um_256px").put(bag)
    return folder


# -- what the README promises ------------------------------------------------------------------


def test_readme_has_the_two_commands_word_for_word() -> None:
    lines = shell_lines(ROOT / "README.md")
    assert DEMO in lines
    assert TESTS in lines


def test_readme_commands_name_what_exists() -> None:
    assert (ROOT / "constraints.txt").is_file()
    assert "dev" in project()["dependency-groups"]
    assert project()["project"]["scripts"] == {"wsi": "pipelines.cli:main"}
    assert callable(app["demo"].default_command)


def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == TESTS
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_dependency_is_constrained_to_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line)] == []
    groups = project()["dependency-groups"].values()
    wanted = project()["project"]["dependencies"] + [
        item for group in groups for item in group if isinstance(item, str)
    ]
    names = {re.split(r"[\[<>=]", item)[0].replace(".", "-") for item in wanted}
    assert names <= {line.partition("==")[0] for line in lines}


def test_all_files_tell_the_same_version_and_licence() -> None:
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = project()["project"]["version"]
    assert str(citation["version"]) == wsi.__version__ == version
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == version
    assert citation["license"] == project()["project"]["license"]


# -- commands and settings ---------------------------------------------------------------------


def check_command(line: str) -> None:
    """Raise unless the command line parses and its settings are valid."""
    tokens = shlex.split(line)[1:]
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    check_settings(bound.arguments.get("settings", ()))


def test_a_wrong_command_or_setting_is_noticed() -> None:
    from cyclopts import CycloptsError

    check_command("wsi train demo --cohort c.csv --bags B --out R fit.epochs=3")
    with pytest.raises(CycloptsError):
        check_command("wsi preprocess --slides SLIDES --out OUT --dry-ran")
    with pytest.raises(CycloptsError):
        check_command("wsi bags list OUT/bags")
    with pytest.raises(errors.ConfigError):
        check_command("wsi config show fit.epoch=3")
    with pytest.raises(errors.ConfigError):
        check_command("wsi config show tissue.method.pencil=false")


@each_page
def test_commands_parse(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    scripts = {".venv/bin/python", ".venv/bin/uv"}
    for line in shell_lines(page):
        words = shlex.split(line)
        if words[0] == "wsi":
            check_command(line)
        elif words[0] == "make":
            assert words[1] in targets, line
        else:
            assert line in (DEMO, TESTS) or words[0] in scripts, line
            named = [w for w in words[1:] if w.endswith((".py", ".toml", ".txt"))]
            assert [w for w in named if not (ROOT / w).is_file()] == []


@each_page
def test_commands_in_sentences_exist(page: Path) -> None:
    options = known_options()
    for code in inline(page):
        words = code.split()
        if words[0] == "wsi" and len(words) > 1 and words[1].islower():
            command = app[words[1]]
            if len(words) > 2 and words[2].isalpha() and command.default_command is None:
                assert words[2] in command, code
        used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code))
        assert used <= options | {"--version", "--help"}, code


@each_page
def test_settings_in_sentences_are_valid(page: Path) -> None:
    for code in inline(page):
        words = code.split()
        if all(re.match(r"[a-z_]+(\.[a-z0-9_]+)*=", word) for word in words):
            check_settings([word for word in words if word != "key=value"])


# -- pages ---------------------------------------------------------------------------------------


def test_generated_pages_are_current() -> None:
    for name, text in generator().pages().items():
        written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is stale — run python docs/generate.py"


def test_settings_reference_has_every_setting() -> None:
    from pipelines.config import keys

    written = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert [key for key in keys() if f"| `{key}` |" not in written] == []


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if ":" not in link]
    broken = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


@each_page
def test_blocks_are_commands_python_or_output(page: Path) -> None:
    languages = {language for language, _ in blocks(page)}
    assert languages <= {"sh", "python", "text", "console"}


@each_page
def test_python_runs_and_prints_what_stands_below(
    page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    found = blocks(page)
    for k, (language, body) in enumerate(found):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, page.name, "exec"), {})
        assert printed.getvalue()
        if found[k + 1 : k + 2] and found[k + 1][0] == "text":
            assert printed.getvalue() == found[k + 1][1]


@each_page
def test_files_of_the_repository_that_are_named_exist(page: Path) -> None:
    named = [c for c in inline(page) if re.match(r"(wsi|pipelines|tests|docs|configs)/\S+$", c)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rooms = [
        path.relative_to(ROOT).as_posix()
        for package in ("wsi", "pipelines")
        for path in sorted((ROOT / package).iterdir())
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    unnamed = [room for room in rooms if f"`{room}`" not in text and "__init__" not in room]
    assert unnamed == []


def test_architecture_has_the_layers_that_are_checked() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    page = ROOT / "docs" / "explanation" / "architecture.md"
    assert any("\n".join(layers) + "\n" in body for _, body in blocks(page))


def test_exit_codes_of_all_errors_are_explained() -> None:
    classes = [e for e in vars(errors).values() if isinstance(e, type)]
    codes = {e.exit_code for e in classes if issubclass(e, errors.WsiError)}
    for page in (ROOT / "README.md", ROOT / "docs" / "reference" / "cli.md"):
        explained = re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert codes <= {int(code) for code in explained}
