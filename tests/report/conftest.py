from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from wsi.evaluation import Predictions, evaluate
from wsi.report import Example, PartRow, RunSummary
from wsi.report.telling import telling
from wsi.specs import EvaluateSpec

VOID = {"meta", "img", "br", "link", "hr", "input"}
QUICK = EvaluateSpec(replicates=100)


class Page(HTMLParser):
    """All elements with attributes and text, read by the standard library's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="session")
def parsed():
    """Read a page: `parsed(text)` has its elements, rows and words."""
    return Page


def predictions_of(classes=("normal", "low", "high"), seeds=1, skill=1.0, n=36, absent=0, draw=0):
    """36 slides of 18 patients, 3 sites and 3 folds; the last `absent` classes have no slide."""
    C = len(classes)
    rng = np.random.default_rng([draw, int(10 * skill)])
    y = np.arange(n) % (C - absent)
    patient = np.arange(n) // 2
    tables = []
    for seed in range(seeds):
        z = np.round(rng.normal(size=(n, C)), 1)
        z[np.arange(n), y] += skill
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        table = pd.DataFrame(
            {
                "slide_id": [f"s{k:03}" for k in range(n)],
                "patient_id": [f"p{k:03}" for k in patient],
                "site": [f"c{k % 3}" for k in patient],
                "fold": patient // 3 % 3,
                "seed": seed,
                "y_true": [classes[k] for k in y],
            }
        )
        for c, name in enumerate(classes):
            table[f"p_{name}"] = p[:, c]
        tables.append(table)
    return Predictions(classes, pd.concat(tables, ignore_index=True))


def history(seed=0, epochs=6):
    rng = np.random.default_rng(seed)
    return [
        {
            "epoch": e,
            "train_loss": 1 / (1 + e) + 0.01 * rng.normal(),
            "val_loss": 1.2 / (1 + e) + 0.01 * rng.normal(),
            "monitor": 0.5 + 0.05 * e,
            "lr": 1e-4,
            "grad_norm": 1.0,
        }
        for e in range(epochs)
    ]


def run_of(name="ce", classes=("normal", "low", "high"), seeds=1, pictures=1, **changes):
    predictions = predictions_of(classes, seeds, changes.pop("skill", 1.0), **changes.pop("of", {}))
    rng = np.random.default_rng(7)
    examples = [
        Example(
            slide.slide_id,
            rng.integers(0, 256, (600, 700, 3), dtype=np.uint8),
            f"attention {k}",
        )
        for k, slide in enumerate(telling(predictions)[:pictures])
    ]
    values = {
        "metrics": evaluate(predictions, QUICK),
        "predictions": predictions,
        "histories": {f"fold{f}-seed{s}": history(f + s) for f in range(3) for s in range(seeds)},
        "facts": {"encoder": "texture-v1", "objective": name},
        "parts": [PartRow(0, "train", 24, 12, dict.fromkeys(classes, 8))],
        "examples": examples,
        "chosen": {"fold0-seed0": 4},
        "monitor": "auc",
    }
    return RunSummary(name, **(values | changes))


@pytest.fixture(scope="session")
def toy():
    """A maker of runs with every part of a report."""
    return run_of


@pytest.fixture(scope="session")
def quick():
    """Settings of an evaluation that takes no time."""
    return QUICK
