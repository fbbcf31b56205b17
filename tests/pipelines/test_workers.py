"""Where work is done: devices that are here, and processes that start as told."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
import torch

from pipelines.workers import Pool, check_device, processes, reading_threads, why_broken
from wsi.errors import ConfigError, ResourceError, TrainingError


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


def test_a_process_that_ends_by_itself_is_not_taken_for_want_of_memory() -> None:
    with processes(1) as pool:
        lost = pool.submit(os._exit, 3)
        with pytest.raises(BrokenProcessPool):
            lost.result()
        told = why_broken(pool, "a fit", "finished fits are kept")
    assert not isinstance(told, ResourceError)
    assert "a fit ended by itself with code 3" in str(told)


@pytest.mark.parametrize(
    ("codes", "error", "words"),
    [
        ([-9, -15], ResourceError, "killed, most often for want of memory"),
        ([0, -15, -11], TrainingError, "crashed (SIGSEGV)"),
        ([1, 1], TrainingError, "ended by itself with code 1"),
        ([-15], ResourceError, "killed"),
    ],
)
def test_how_processes_ended_says_why_a_pool_broke(codes, error, words) -> None:
    with Pool(1, None) as pool:
        pool.started += [SimpleNamespace(exitcode=code) for code in codes]
        told = why_broken(pool, "a fit", "the rest is kept")
    assert type(told) is error
    assert words in str(told)
