"""The command line as a user types it: help, suggestions, refusals, interruptions."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from pipelines.cli import app, run_command
from pipelines.commands import apply, bags, judge, learn, look, slides, tables
from pipelines.commands.base import Common

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Refused = Callable[..., str]

COMMANDS = {
    "demo": look.demo,
    "doctor": look.doctor,
    "scan": slides.scan,
    "preprocess": slides.preprocess,
    "why": look.why,
    "tissue import": slides.tissue_import,
    "encoders check": slides.encoders_check,
    "encoders pull": slides.encoders_pull,
    "bags ls": bags.bags_ls,
    "bags pack": bags.bags_pack,
    "bags verify": bags.bags_verify,
    "bags convert": bags.bags_convert,
    "bags import": bags.bags_import,
    "bags audit": bags.bags_audit,
    "bags relink": bags.bags_relink,
    "cohort build": tables.cohort_build,
    "cohort miniature": tables.cohort_miniature,
    "cohort labels": tables.cohort_labels,
    "cohort check": tables.cohort_check,
    "splits make": tables.splits_make,
    "splits audit": tables.splits_audit,
    "train": learn.train,
    "study": learn.study,
    "sweep": learn.sweep,
    "evaluate": judge.evaluate,
    "compare": judge.compare,
    "report": judge.report,
    "stage": judge.stage,
    "predict": apply.predict,
    "explain": apply.explain,
    "export": apply.export,
    "model import": apply.model_import,
    "list": look.list_,
    "config show": look.config_show,
    "config schema": look.config_schema,
    "schema": look.schema_,
}
HEAVY = ("torch", "torchvision", "timm", "sklearn", "zarr", "lightning_fabric", "matplotlib")


def in_new_process(code: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
    )


# -- help --------------------------------------------------------------------------------------


def typed(of: Any = app, before: str = "") -> Iterator[str]:
    """Yield every command that can be typed."""
    for name in of:
        if name.startswith("-"):
            continue
        below = list(typed(of[name], f"{before}{name} "))
        yield from below or [before + name]


def test_every_command_is_under_test() -> None:
    assert sorted(typed()) == sorted(COMMANDS)


def plain(text: str) -> str:
    """Return text without the frames of tables and line ends."""
    return " ".join(re.sub(r"[│╭╮╰╯─]|^. \* ", " ", text).split())


def metadata(function: Callable[..., Any], name: str) -> tuple[Any, ...]:
    """Return what stands in the annotation of a parameter beside its type."""
    return getattr(get_type_hints(function, include_extras=True)[name], "__metadata__", ())


ALL_HELP = """
import sys
from pipelines.cli import run_command
for command in sys.argv[1:]:
    print("HELP", command)
    print("CODE", run_command([*command.split(), "--help"]))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of every command, by its name."""
    # In a process of its own: the width of help is settled once, by whoever asked first.
    done = in_new_process(ALL_HELP, *COMMANDS, COLUMNS="300")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^HELP (.+?)\n(.*?)^CODE 0$", done.stdout, re.MULTILINE | re.DOTALL))
    assert list(found) == list(COMMANDS)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, helps: dict[str, str]) -> None:
    said = helps[command]
    function = COMMANDS[command]
    doc = inspect.getdoc(function) or ""
    assert doc.splitlines()[0] in plain(said)
    lines = {line.strip("│ *").split()[0]: plain(line) for line in said.splitlines() if "│" in line}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "common":
            continue
        (given,) = [getattr(m, "name", ()) for m in metadata(function, name)][:1] or [()]
        option = given[0] if given else f"--{name.replace('_', '-').strip('-')}"
        shown = option if parameter.kind is parameter.KEYWORD_ONLY else name.upper()
        if name == "settings":
            explained = "key=value"
        else:
            found = re.search(rf"^{name}\n((?:    .+\n?)+)", doc, re.MULTILINE)
            assert found, f"{command}: {name} is not in the docstring"
            explained = " ".join(found[1].split())
        assert shown in lines
        assert explained in plain(said)
    for field in fields(Common):
        assert len(lines[f"--{field.name}"].split()) > 3


def test_the_top_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"│ {command.split()[0]} ", said)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("wsi")


HELP_COST = """
import os, resource, subprocess, sys
code = "import sys; from pipelines.cli import main; main(['--help'])"
costs = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    costs.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
print(min(costs))
"""


def test_help_comes_at_once(tmp_path: Path) -> None:
    # As for a user, whose modules are compiled once; some machines are told not to keep them.
    done = in_new_process(
        HELP_COST, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path / "compiled")
    )
    assert float(done.stdout) < 0.5


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipelines.cli import run_command; code = run_command(['--help']);"
        "print('LOADED', *sys.modules); sys.exit(code)"
    )
    done = in_new_process(code)
    assert done.returncode == 0
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "cyclopts" in loaded
    assert not {"numpy", "pandas", "pydantic", *HEAVY} & set(loaded)


def test_looking_at_tables_and_bags_loads_no_torch(shared_study: Study, tmp_path: Path) -> None:
    code = """
import sys
from pipelines.cli import run_command
cohort, bags, folder = sys.argv[1:]
for words in (
    ["bags", "ls", bags], ["bags", "verify", bags], ["cohort", "check", cohort],
    ["splits", "make", cohort, "--out", folder + "/s.csv", "split.folds=3"],
    ["splits", "audit", folder + "/s.csv", "--cohort", cohort], ["config", "show", "demo"],
    ["scan", folder], ["train", "objective=nmci", "--cohort", "a", "--bags", "b", "--out", "c"],
):
    print("CODE", run_command(words))
print("LOADED", *sys.modules)
"""
    done = in_new_process(code, shared_study.cohort, shared_study.bags, tmp_path)
    assert re.findall(r"CODE (\d)", done.stdout) == list("00000032")
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "h5py" in loaded
    assert not {"torch", "timm", "torchvision"} & set(loaded)


# -- near misses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("trian", '"train"'),
        ("bags vrify x", '"verify"'),
        ("config shwo", '"show"'),
        ("train --cohrot x", "--cohort"),
        ("demo --sede 3", "--seed"),
        ("evaluate --replicate 100 x", "--replicates"),
        ("list encodrs", '"encoders"'),
        ("preprocess --slides a --out b --until tisue", '"tissue"'),
        ("bags convert a --to h6 --out b", '"h5"'),
        ("config show fit.epoch=3", "'fit.epochs'"),
        ("config show encoder=resnet5", "'resnet50'"),
        ("config show aggregator=abml", "'abmil'"),
        ("config show objective=nmci", "'ncmi'"),
        ("config show tissue.method=od_ostu", "'od_otsu'"),
        ("config show dmeo", "'demo'"),
        ("config show batch_size=1", "fit.bags_per_step"),
        (
            "train objective=ncmi objective.temprature=1 --cohort a --bags b --out c",
            "'temperature'",
        ),
        ("train aggregator.hiden=8 --cohort a --bags b --out c", "'hidden'"),
    ],
)
def test_a_near_miss_is_told_the_right_word(line: str, nearest: str, refused: Refused) -> None:
    said = refused(line.split(), 2)
    assert nearest in said


# -- refusals ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """Files and folders that are not what a command wants."""

    root: Path

    def fill(self, line: str, study: Study, run: Path) -> list[str]:
        places = {path.stem: path for path in self.root.iterdir()}
        places |= {"cohort": study.cohort, "bags": study.bags, "run": run}
        places |= {"missing": self.root / "nowhere", "root": self.root, "long": Path("x" * 300)}
        train = f"data.classes=[normal,itc,macro] --out {self.root / 'new'}"
        return line.format(train=train, **places).split()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Bad:
    root = tmp_path_factory.mktemp("bad")
    (root / "hollow").mkdir()
    (root / "norun").mkdir()
    (root / "norun" / "config.yaml").write_text("fit: {epochs: 3}\n")
    (root / "brokenrun").mkdir()
    (root / "brokenrun" / "config.yaml").write_text("fit: {epochs: 3}\n")
    (root / "brokenrun" / "inputs.json").write_text("{")
    (root / "brokenrun" / "predictions.csv").write_bytes(b"\xff\x00\xfe" * 99)
    (root / "brokenrun" / "predictions.json").write_text("[]")
    (root / "empty.csv").write_bytes(b"")
    (root / "header.csv").write_text("slide_id,patient_id,label,site,fold,part\n")
    (root / "garbage.csv").write_bytes(bytes(range(256)) * 20)
    (root / "text.txt").write_text("neither slide nor table\n")
    (root / "list.yaml").write_text("- 1\n")
    return Bad(root)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("train --cohort {missing} --bags {bags} {train}", 2),
        ("train --cohort {hollow} --bags {bags} {train}", 2),
        ("train --cohort {empty} --bags {bags} {train}", 5),
        ("train --cohort {header} --bags {bags} {train}", 5),
        ("train --cohort {garbage} --bags {bags} {train}", 5),
        ("train --cohort {cohort} --bags {missing} {train}", 5),
        ("train --cohort {cohort} --bags {hollow} {train}", 5),
        ("train --cohort {cohort} --bags {text} {train}", 5),
        ("train --cohort {cohort} --bags {bags} {train} --splits {missing}", 2),
        ("train --cohort {cohort} --bags {bags} {train} --splits {hollow}", 2),
        ("train --cohort {cohort} --bags {bags} {train} --splits {empty}", 5),
        ("train --cohort {cohort} --bags {bags} {train} --splits {garbage}", 5),
        ("train --cohort {cohort} --bags {bags} {train} --splits {header}", 5),
        ("train --cohort {cohort} --bags {bags} {train} --device foo", 2),
        ("train --cohort {cohort} --bags {bags} {train} --device cuda:99", 2),
        ("train --cohort {cohort} --bags {bags} {train} --device cpu:1", 2),
        ("train --cohort {cohort} --bags {bags} {train} --device cuda:", 2),
        ("train --cohort {cohort} --bags {bags} {train} --device meta", 2),
        ("train --cohort {cohort} --bags {bags} {train} --jobs -3", 2),
        ("train --cohort {cohort} --bags {bags} {train} --jobs 0", 2),
        ("train --cohort {cohort} --bags {bags} {train} --jobs two", 2),
        ("train --cohort {cohort} --bags {bags} {train} fit.epochs=", 2),
        ("train --cohort {cohort} --bags {bags} {train} fit.epochs=many", 2),
        ("train --cohort {cohort} --bags {bags} {train} fit.epochs=0", 2),
        ("train --cohort {cohort} --bags {bags} {train} fit.seeds=[1,1]", 2),
        ("train --cohort {cohort} --bags {bags} {train} data.label=grade", 2),
        ("train --cohort {cohort} --bags {bags} {train} split.kind=official", 5),
        ("train --cohort {cohort} --bags {bags} {train} =3", 2),
        ("train --cohort {cohort} --bags {bags} {train} =", 2),
        ("train data.classes=[normal,itc,macro] --cohort {cohort} --bags {bags} --out {text}", 2),
        ("train data.classes=[normal,itc,macro] --cohort {cohort} --bags {bags} --out {norun}", 2),
        (
            "train data.classes=[normal,itc,macro] --cohort {cohort} --bags {bags} "
            "--out {brokenrun}",
            2,
        ),
        ("train data.classes=[normal] --cohort {cohort} --bags {bags} --out {root}/new", 2),
        ("train --cohort", 2),
        ("train", 2),
        ("evaluate", 2),
        ("evaluate {missing}", 2),
        ("evaluate {hollow}", 2),
        ("evaluate {norun}", 2),
        ("evaluate {brokenrun}", 5),
        ("evaluate {empty}", 5),
        ("evaluate {garbage}", 5),
        ("evaluate {text}", 5),
        ("evaluate {header}", 5),
        ("evaluate {long}", 1),
        ("evaluate {run} --replicates 5", 2),
        ("evaluate {run} --replicates many", 2),
        ("evaluate {run} --by colour", 2),
        ("evaluate {run} --replicates 100 --cohort {missing}", 2),
        ("evaluate {run} --replicates 100 --cohort {garbage}", 5),
        ("evaluate {run} --replicates 100 --out {text}", 1),
        ("compare {run}", 2),
        ("compare {run} {run}", 2),
        ("compare {run} {missing}", 2),
        ("compare {run} {garbage}", 5),
        ("bags ls {missing}", 5),
        ("bags ls {hollow}", 5),
        ("bags verify {text}", 5),
        ("bags convert {bags} --to h6 --out {root}/new", 2),
        ("bags convert {bags} --to zarr --out {text}", 2),
        ("bags ls", 2),
        ("cohort check {missing}", 2),
        ("cohort check {hollow}", 2),
        ("cohort check {garbage}", 5),
        ("cohort check {empty}", 5),
        ("cohort check {cohort} data.label=grade data.classes=[a,b]", 2),
        ("splits make {cohort}", 2),
        ("splits make {cohort} --out {root}/s.csv split.kind=random", 2),
        ("splits make {cohort} --out {root}/s.csv split.kind=sites", 2),
        ("splits make {cohort} --out {root}/s.csv split.folds=1", 2),
        ("splits make {cohort} --out {hollow}", 1),
        ("splits make {cohort} --out {text}/s.csv", 1),
        ("splits audit {garbage} --cohort {cohort}", 5),
        ("splits audit {missing} --cohort {cohort}", 2),
        ("list", 2),
        ("config show {missing}", 2),
        ("config show {hollow}", 2),
        ("config show {garbage}", 2),
        ("config show {list}", 2),
        ("config show demo demo", 2),
        ("scan", 2),
        ("scan {missing}", 2),
        ("preprocess --out {root}/new", 2),
        ("preprocess --slides {missing} --out {root}/new", 2),
        ("preprocess --slides {hollow} --out {root}/new", 2),
        ("preprocess --slides {hollow} --out {root}/new --device foo", 2),
        ("preprocess --slides {hollow} --out {root}/new --jobs -1", 2),
        ("preprocess --slides {garbage} --out {root}/new", 5),
        ("preprocess --slides {hollow} --out {text}", 2),
        ("demo --out {norun}", 2),
        ("demo --out {text}", 1),
        ("demo --seed one", 2),
        ("nothing", 2),
        ("--nothing", 2),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    line: str, code: int, bad: Bad, shared_study: Study, shared_run: Path, refused: Refused
) -> None:
    words = bad.fill(line, shared_study, shared_run)
    said = refused(words, code)
    assert not said.startswith("error[BUG]")
    assert re.search(r"—|did you mean|should be|must be|go together|a config is", said)
    assert not (bad.root / "new" / "config.yaml").exists()


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bags", "ls", "nowhere", "--debug"]) == 5
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error[MISSING]")


def test_a_bug_is_called_one_and_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def broken(*_: Any) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("pipelines.bags.list_bags", broken)
    assert "this is a bug" in refused(["bags", "ls", "x"], 1)


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device", "a.csv")])
def test_what_ran_out_is_exit_4(
    error: Exception, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def broken(*_: Any) -> int:
        raise error

    monkeypatch.setattr("pipelines.bags.list_bags", broken)
    assert "rerun" in refused(["bags", "ls", "x"], 4)


def test_quiet_says_nothing_of_success(
    shared_study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bags", "verify", str(shared_study.bags), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_no_error(shared_study: Study) -> None:
    done = subprocess.run(
        f"{sys.executable} -m pipelines.cli bags ls {shared_study.bags} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("slide_id")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# -- interruptions -----------------------------------------------------------------------------

ENDLESS = ("fit.epochs=1000000", "fit.patience=1000000", "fit.warmup_epochs=0")


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Answer signals as a fresh program does, and put back what was."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int, out: Path, finished: threading.Event) -> None:
    """Send this process a signal, a while after training into `out` has begun."""
    while not (out / "inputs.json").exists():
        if finished.wait(0.05):
            return
    if not finished.wait(1.0):
        os.kill(os.getpid(), number)


@pytest.mark.usefixtures("own_signals", "shared_run")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_how_to_go_on(
    number: int,
    code: int,
    shared_study: Study,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, finished = tmp_path / "run", threading.Event()
    thread = threading.Thread(target=interrupt, args=(number, out, finished))
    thread.start()
    try:
        ended = shared_study.train(out, *ENDLESS, "--jobs", "1")
    except SystemExit as exit:
        ended = exit.code
    finally:
        finished.set()
        thread.join()
    assert ended == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error[INTERRUPTED]")
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert not list(out.rglob("done.json"))
    assert not list(out.rglob(".tmp*"))


AS_TYPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.cli import main
main(sys.argv[1:])
"""


def alive_in_group(group: int) -> list[str]:
    """Return the processes of a group that still run; the dead may wait to be buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # gone meanwhile
        state, _, its_group, *_ = text.rpartition(")")[2].split()
        if int(its_group) == group and state not in "ZX":
            found.append(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_processes_all_end_and_keep_quiet(
    number: int, code: int, shared_study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = shared_study.command(out, *ENDLESS, "--jobs", "2")
    # SIGINT goes to the whole group, as Ctrl-C does; SIGTERM to the first process alone.
    with subprocess.Popen(
        [sys.executable, "-c", AS_TYPED, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (out / "inputs.json").exists() and process.poll() is None:
            time.sleep(0.1)
        time.sleep(30)  # the workers load torch, then train
        started = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - started < 10
    assert "Traceback" not in said
    assert said.count("error[") == 1
    while left := alive_in_group(process.pid):
        assert time.monotonic() - started < 20, left
        time.sleep(0.1)
