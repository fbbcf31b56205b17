"""kill -9 of `wsi train` at random moments: started again each time, it leaves the same bytes.

The oracle is a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from wsi.bags import Bag, Provenance, create_store

ROOT = Path(__file__).parents[2]
DIM, CLASSES = 64, ("low", "mid", "high")
SETTINGS = (
    f"data.classes=[{','.join(CLASSES)}]",
    "split.folds=2",
    "fit.seeds=2",
    "fit.epochs=60",
    "fit.patience=60",
    "fit.lr=0.001",
    "fit.max_tiles=400",
    "aggregator.hidden=128",
    "evaluate.replicates=100",
)


def made_bags(root: Path, n: int) -> None:
    """Store n bags of about 500 tiles and a table of them."""
    store = create_store(root / "bags" / "texture-v1_0.5um_256px")
    lines = ["slide_id,patient_id,label,site"]
    for k in range(n):
        rng = np.random.default_rng(k)
        tiles, label = int(rng.integers(400, 600)), k % 3
        features = rng.standard_normal((tiles, DIM)).astype(np.float32)
        features[: tiles // 10, label] += 1.0
        xy0 = np.stack([np.arange(tiles) * 256, np.zeros(tiles)], axis=1).astype(np.int32)
        made = Provenance(
            slide={"fingerprint": f"of {k}", "mpp": [0.5, 0.5]},
            tiling={
                "settings": {"mpp": 0.5, "tile_px": 256, "stride_um": 128.0, "min_tissue": 0.05},
                "resolved": {"size0": [256.0, 256.0]},
            },
            encoder={"name": "texture-v1", "dim": DIM, "fingerprint": "0123456789abcdef"},
            tissue={"settings": {"method": "od_otsu"}},
            precision="float32",
        )
        store.put(Bag(f"s{k:02}", features, xy0, np.ones(tiles, np.float16), made))
        lines.append(f"s{k:02},p{k:02},{CLASSES[label]},x")
    (root / "cohort.csv").write_text("\n".join(lines) + "\n")


def start(root: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    where = ["--cohort", str(root / "cohort.csv"), "--bags", str(root / "bags"), "--out", str(out)]
    with (root / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "train", *SETTINGS, *where, *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


def content(out: Path) -> dict[str, bytes]:
    """Return the files that no clock has a part in, by name."""
    names = ("predictions.csv", "splits.csv", "metrics.json", "model.safetensors")
    return {str(p.relative_to(out)): p.read_bytes() for n in names for p in sorted(out.rglob(n))}


def histories(out: Path) -> dict[str, list[dict[str, object]]]:
    """Return the rows of every fit, without how long they took."""
    found = {}
    for path in sorted(out.glob("fold*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    return found


def epochs_so_far(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("fold*/metrics.jsonl"))


def in_session(session: int) -> list[str]:
    """Return the processes of a session that still live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.cmdline()}")
    return found


def disturbed(root: Path, out: Path, kills: int, rng: random.Random, *words: str) -> list[int]:
    """Kill a run at random moments, starting it again each time; return the epochs at each kill.

    Kills come between the start of a process, before it has read a bag, and the last epochs.
    """
    at: list[int] = []
    while len(at) < kills:
        process = start(root, out, *words)
        before, wanted = epochs_so_far(out), rng.randint(0, 40)
        end = time.monotonic() + 300
        try:
            while process.poll() is None and epochs_so_far(out) < before + wanted:
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2 if wanted else 5))
            assert process.poll() is None, "it ended before all kills were spent: more epochs"
        finally:
            process.kill()
            process.wait()
        gone = time.monotonic() + 10
        while left := in_session(process.pid):
            assert time.monotonic() < gone, left
            time.sleep(0.05)
        at.append(epochs_so_far(out))
    return at


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "words"), [("1", ()), ("2", ("objective=ncmi",))], ids=["one-process", "two-processes"]
)
def test_ten_kills_change_no_byte(tmp_path: Path, jobs: str, words: tuple[str, ...]) -> None:
    made_bags(tmp_path, 45)
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert start(tmp_path, calm, *words, "--jobs", "1").wait(600) == 0
    at = disturbed(tmp_path, out, 10, random.Random(7), *words, "--jobs", jobs)
    last = start(tmp_path, out, *words, "--jobs", jobs)
    assert last.wait(600) == 0, (tmp_path / "said.txt").read_text()
    assert content(out) == content(calm)
    assert len(content(out)) == 3 + 2 * 4
    assert histories(out) == histories(calm)
    assert not list(out.rglob(".tmp*"))
    assert not list(out.rglob("state.safetensors"))
    said = (tmp_path / "said.txt").read_text()
    assert "may go on where it was ended" in said
    assert "damaged" not in said
    assert "Traceback" not in said
    print(f"epochs written when killed: {at}")
