"""The reference of metrics: none is forgotten, and every example agrees with scikit-learn."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_docs import ROOT, blocks
from wsi.evaluation import METRICS

PAGE = ROOT / "docs" / "reference" / "metrics.md"


def sections() -> dict[str, str]:
    """Return the text below each heading of a metric, by its name."""
    parts = re.split(r"^###? (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {h.split("`")[1]: text for h, text in zip(parts[1::2], parts[2::2]) if h[0] == "`"}


def test_every_metric_has_a_heading_and_no_other_has() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(sections()) == set(METRICS)
    assert all(f"### `{name}`: {metric.title}\n" in text for name, metric in METRICS.items())


@pytest.mark.parametrize("name", METRICS)
def test_the_example_of_a_metric_says_what_the_other_library_says(name: str) -> None:
    """That each block prints what stands below it is tested with all other pages."""
    text = sections()[name]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    ours, theirs = map(float, printed.split())
    assert f'METRICS["{name}"]' in code
    assert "sklearn.metrics" in code or name == "ece"  # which scikit-learn has not
    assert ours == theirs


def test_the_page_runs_no_example_without_its_output() -> None:
    languages = [language for language, _ in blocks(PAGE)]
    assert languages.count("python") == languages.count("text")
