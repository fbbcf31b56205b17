"""`wsi demo`: what it draws, and the whole of it without a network."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipelines.cli import app
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.demo import NEXT, say_alarms
from wsi.cohorts import read_cohort
from wsi.cohorts.synthetic import plan_cohort, write_table

CLASSES = ("normal", "large-cell", "small-cell")


def test_the_plan_is_balanced_over_sites_and_classes() -> None:
    planned = plan_cohort()
    assert len(planned) == len({p.slide_id for p in planned}) == 36
    counts = Counter((p.site.name, p.label) for p in planned)
    assert len(counts) == 9
    assert set(counts.values()) == {4}
    assert {p.label for p in planned} == set(CLASSES)


def test_patients_of_the_plan_have_one_class_and_one_site() -> None:
    slides: dict[str, list] = defaultdict(list)
    for item in plan_cohort():
        slides[item.patient_id].append(item)
    assert len(slides) == 27
    assert Counter(len(items) for items in slides.values()) == {1: 18, 2: 9}
    for items in slides.values():
        assert len({(item.label, item.site.name) for item in items}) == 1


def test_the_plan_is_the_same_again_and_other_for_another_seed() -> None:
    assert plan_cohort(seed=3) == plan_cohort(seed=3)
    seeds = [p.seed for p in plan_cohort(seed=3)]
    assert len(set(seeds)) == 36
    assert seeds != [p.seed for p in plan_cohort(seed=4)]
    assert [p.slide_id for p in plan_cohort(seed=3)] == [p.slide_id for p in plan_cohort(seed=4)]


def test_the_table_of_the_plan_names_every_slide(tmp_path: Path) -> None:
    planned = plan_cohort()
    paths = [tmp_path / "slides" / f"{p.slide_id}.svs" for p in planned]
    write_table(planned, paths, tmp_path / "cohort.csv")
    with (tmp_path / "cohort.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    for item, row in zip(planned, rows, strict=True):
        assert (row["slide_id"], row["label"]) == (item.slide_id, item.label)
        assert (row["patient_id"], row["site"]) == (item.patient_id, item.site.name)
        assert row["path"] == f"slides/{item.slide_id}.svs"
    cohort = read_cohort(tmp_path / "cohort.csv", classes=CLASSES)
    assert cohort.labels_from == "synthetic slides, drawn by wsi with their labels"


NO_NETWORK = """
import socket

def refuse(*words, **named):
    raise OSError(f"the network was asked for: {words}")

connect = socket.socket.connect

def local_only(self, address):
    if self.family not in (socket.AF_UNIX,) and address[0] not in ("127.0.0.1", "::1"):
        refuse(address)
    return connect(self, address)

socket.socket.connect = local_only
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""

MEASURED = """
import json, resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run([sys.executable, "-m", "pipelines.cli", *sys.argv[1:]], stdout=-1, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"code": done.returncode, "peak": peak, "said": done.stdout,
                  "seconds": time.monotonic() - started}))
"""


def macro_f1(run: Path) -> float:
    table = pd.read_csv(run / "predictions.csv")
    return float(f1_score(table["y_true"], table["y_pred"], labels=list(CLASSES), average="macro"))


def test_what_the_demo_says_to_do_next_can_be_typed() -> None:
    commands = [shlex.split(line.split("`")[1])[1:] for line in NEXT]
    assert {"scan", "preprocess", "train", "explain", "study"} <= {words[0] for words in commands}
    for words in commands:
        app.parse_args(words, exit_on_error=False, print_error=False)
        load_config([word for word in words if "=" in word])


@pytest.mark.slow
def test_the_demo_shows_what_it_claims_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(NO_NETWORK)
    guarded = os.environ | {"PYTHONPATH": str(tmp_path / "guard")}
    proof = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    refused = subprocess.run(
        [sys.executable, "-c", proof], env=guarded, capture_output=True, text=True, check=False
    )
    assert "the network was asked for" in refused.stderr

    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "demo", "--out", str(out), "--json"],
        env=guarded,
        capture_output=True,
        text=True,
        check=False,
    )
    measured = json.loads(done.stdout)
    print(f"{measured['seconds']:.0f} s, peak {measured['peak'] / 1e9:.2f} GB")
    assert measured["code"] == 0, done.stderr
    assert measured["peak"] < 3e9

    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    said = json.loads(measured["said"])
    assert said["report"] == str(out / "report.html")
    for name in ("ce", "ncmi"):
        assert said["top_tiles_in_lesions"][name]["share"] >= 0.80
        assert said["top_tiles_in_lesions"][name]["slides"] == 24
        assert 0.45 < macro_f1(out / "runs" / name) < 1.0
        assert "## Limitations" in (out / "runs" / name / "model-card.md").read_text()
        assert macro_f1(out / "runs" / name) > macro_f1(out / "runs" / "mean-pooling")
    shown = {run["name"]: run["value"] for run in said["comparison"]["runs"]}
    assert shown == {name: pytest.approx(macro_f1(out / "runs" / name)) for name in shown}


def test_alarms_of_the_runs_are_told_on_one_line(tmp_path: Path) -> None:
    runs = {"ce": tmp_path / "ce", "ncmi": tmp_path / "ncmi"}
    alarm = {"name": "saturation", "since": 0, "message": "too steep — raise it"}
    for name, found in (("ce", []), ("ncmi", [alarm])):
        cell = runs[name] / "fold0-seed0"
        cell.mkdir(parents=True)
        (cell / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "alarms": found}) + "\n")
    console = Console(log=tmp_path / "log")
    say_alarms(runs, console)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(
        "alarms while training (ncmi: saturation) — see the learning curves in the report"
    )
