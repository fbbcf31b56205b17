"""How many fits run side by side, and that a pool leaves nothing running."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipelines.fitting import jobs_for
from pipelines.workers import processes
from wsi.specs import Config

GB = 1 << 30


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cores: int = 16,
    free_gb: float = 64,
    fits: int = 25,
    bag_gb: float = 10,
    packed: bool = False,
    threads: int = 1,
    device: str = "cpu",
    epochs: int = 30,
) -> int:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    memory = SimpleNamespace(available=int(free_gb * GB))
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("pipelines.fitting.packed_bytes", lambda infos: int(bag_gb * GB))
    material: Any = SimpleNamespace(
        store=SimpleNamespace(info=lambda bag_id: SimpleNamespace(n=5000)),
        bag_ids={str(k): str(k) for k in range(500)},
        dim=1024,
        packed=packed or None,
    )
    splits: Any = SimpleNamespace(folds=range(fits))
    config = Config.model_validate({"fit": {"epochs": epochs}})
    return jobs_for(config, splits, material, threads, device)


def test_cores_and_fits_bound_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, cores=4) == 4
    assert chosen(monkeypatch, cores=4, threads=2) == 2
    assert chosen(monkeypatch, cores=1, threads=8) == 1
    assert chosen(monkeypatch, fits=3, cores=8) == 3


def test_bags_that_are_not_mapped_lie_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.8 x 16 GB, at 4 GB of bags kept and 0.7 GB of libraries each
    assert chosen(monkeypatch, free_gb=16) == 2
    assert chosen(monkeypatch, free_gb=16, packed=True) == 16
    assert chosen(monkeypatch, free_gb=1) == 1


def test_an_accelerator_is_not_shared_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, device="cuda") == 1


def test_work_of_seconds_needs_no_further_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.fitting._NUMBER_S", 0.0)
    monkeypatch.setattr("pipelines.fitting._BAG_S", 1e-6)
    assert chosen(monkeypatch) == 1


def test_a_pool_whose_user_fails_ends_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="a bag is damaged"), processes(1) as pool:  # noqa: PT012
        for _ in range(3):
            pool.submit(time.sleep, 600)
        time.sleep(0.5)
        children = psutil.Process().children(recursive=True)
        raise ValueError("a bag is damaged")
    assert time.monotonic() - started < 60
    _, alive = psutil.wait_procs([c for c in children if "spawn_main" in _words(c)], 10)
    assert not alive


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
