"""Where work is done: devices that are here, and processes that start as told."""

from __future__ import annotations

import pytest
import torch

from pipelines.workers import check_device, reading_threads
from wsi.errors import ConfigError


@pytest.mark.parametrize("name", ["foo", "", "CPU", "cpu:0", "mps:1", "cuda:", "cuda:x", "cuda:-1"])
def test_what_is_no_device_is_called_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        check_device(name)


def test_a_device_counts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(name)
    with pytest.raises(ConfigError, match="torch finds 2 of cuda"):
        check_device("cuda:2")


def test_a_machine_without_accelerator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="is not here"):
        check_device("cuda")


@pytest.mark.parametrize(
    ("cores", "jobs", "threads"), [(2, 1, 2), (2, 4, 1), (16, 4, 4), (64, 1, 8)]
)
def test_cores_are_shared_by_processes(monkeypatch, cores, jobs, threads) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert reading_threads(jobs) == threads
