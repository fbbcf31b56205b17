"""A small cohort with bags and no slides: three classes told apart, three sites, many tiles few."""

from __future__ import annotations

import csv
import json
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.cli import run_command
from wsi.bags import Bag, BagStore, Provenance, create_store
from wsi.supervision import BUG, MEMORY, Ended, Event, Lost, Said

CLASSES = ("normal", "itc", "macro")
SITES = ("x", "y", "z")
DIM = 8
TINY = (
    f"data.classes=[{','.join(CLASSES)}]",
    "split.folds=3",
    "fit.epochs=2",
    "aggregator.hidden=8",
    "evaluate.replicates=100",
    "evaluate.floors=false",
)
SHARED = ("fit.seeds=2", "evaluate.floors=true")
"""What the shared run sets beside."""


@dataclass(frozen=True)
class Row:
    """One line of a cohort table."""

    slide_id: str
    patient_id: str
    label: str
    site: str


def rows() -> list[Row]:
    """Return 27 slides of 18 patients: two patients, one with two slides, per class and site."""
    made = []
    for site in SITES:
        for label in CLASSES:
            for patient, slides in ((0, 2), (1, 1)):
                for k in range(slides):
                    owner = f"{site}-{label}-{patient}"
                    made.append(Row(f"{owner}-{k}", owner, label, site))
    return made


def provenance(slide_id: str, tile_px: int = 256) -> Provenance:
    return Provenance(
        slide={"fingerprint": f"of {slide_id}", "mpp": [0.5, 0.5]},
        tiling={
            "settings": {"mpp": 0.5, "tile_px": tile_px, "stride_um": 128.0, "min_tissue": 0.05},
            "resolved": {"size0": [256.0, 256.0]},
        },
        encoder={"name": "texture-v1", "dim": DIM, "fingerprint": "0123456789abcdef"},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float32",
    )


def put_bag(
    store: BagStore, slide_id: str, label: str, seed: int, dim: int = DIM, tile_px: int = 256
) -> None:
    """Store 5 to 12 tiles, half of them shifted along the axis of the class."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 13))
    features = rng.standard_normal((n, dim)).astype(np.float32)
    features[: n // 2, CLASSES.index(label)] += 3.0
    xy0 = np.stack([np.arange(n) * 256, np.zeros(n)], axis=1).astype(np.int32)
    tissue = np.ones(n, np.float16)
    store.put(Bag(slide_id, features, xy0, tissue, provenance(slide_id, tile_px)))


def write_table(path: Path, table: Sequence[Row], **columns: Sequence[str]) -> Path:
    """Write a cohort table, with further columns by name."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["slide_id", "patient_id", "label", "site", *columns])
        more = zip(*columns.values(), strict=True) if columns else ([] for _ in table)
        for row, extra in zip(table, more, strict=True):
            writer.writerow([row.slide_id, row.patient_id, row.label, row.site, *extra])
    return path


@dataclass(frozen=True)
class Study:
    """A folder with `cohort.csv` and `bags/<recipe>`."""

    root: Path

    @property
    def cohort(self) -> Path:
        return self.root / "cohort.csv"

    @property
    def bags(self) -> Path:
        return self.root / "bags"

    @property
    def recipe(self) -> Path:
        return self.bags / "texture-v1_0.5um_256px"

    @property
    def rows(self) -> list[Row]:
        return rows()

    def write_cohort(self, table: Sequence[Row], **columns: Sequence[str]) -> Path:
        """Write the cohort table anew, with further columns by name."""
        return write_table(self.cohort, table, **columns)

    def put(self, recipe: Path, slide_id: str, **changed: Any) -> None:
        """Store a bag of class `normal` in a recipe folder."""
        put_bag(create_store(recipe), slide_id, "normal", 0, **changed)

    def command(self, out: Path, *words: object, settings: Sequence[str] = TINY) -> list[str]:
        """Return the words of `wsi train` for this study."""
        given = [*settings, *(str(w) for w in words if "=" in str(w))]
        flags = [str(w) for w in words if "=" not in str(w)]
        where = ["--cohort", str(self.cohort), "--bags", str(self.bags), "--out", str(out)]
        return ["train", *given, *where, *flags]

    def train(self, out: Path, *words: object, settings: Sequence[str] = TINY) -> int:
        """Return the exit code of `wsi train`."""
        return run_command(self.command(out, *words, settings=settings))


@pytest.fixture(scope="session")
def shared_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Never written to."""
    study = Study(tmp_path_factory.mktemp("study"))
    write_table(study.cohort, rows())
    store = create_store(study.recipe)
    for seed, row in enumerate(rows()):
        put_bag(store, row.slide_id, row.label, seed)
    return study


@pytest.fixture
def study(shared_study: Study, tmp_path: Path) -> Study:
    """A copy of the study that a test may change."""
    return Study(Path(shutil.copytree(shared_study.root, tmp_path / "study")))


@pytest.fixture(scope="session")
def shared_run(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three folds and two seeds, with floors; never written to."""
    out = tmp_path_factory.mktemp("run") / "ce"
    assert shared_study.train(out, *SHARED) == 0
    return out


@pytest.fixture(scope="session")
def shared_mean_run(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run on the same slides, by mean pooling, of one seed; never written to."""
    out = tmp_path_factory.mktemp("run") / "mean"
    assert shared_study.train(out, "aggregator=mean") == 0
    return out


@pytest.fixture
def run_copy(shared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_run, tmp_path / "ce"))


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line that must fail with the code; return what it says on stderr."""

    def of(words: Sequence[object], code: int) -> str:
        capsys.readouterr()
        assert run_command([str(word) for word in words]) == code
        said = capsys.readouterr().err
        heads = [line for line in said.splitlines() if line.startswith("error[")]
        assert len(heads) == 1, said
        assert "Traceback" not in said
        return said[said.index("error[") :]

    return of


@pytest.fixture
def said_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command line with --json and return the document on stdout."""

    def of(words: Sequence[object], code: int = 0) -> Any:
        capsys.readouterr()
        assert run_command([*(str(word) for word in words), "--json"]) == code
        return json.loads(capsys.readouterr().out, parse_constant=_no_constant)

    return of


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@dataclass
class _Heard:
    """The channel of a task in this process, with as many pieces of memory as it asks for."""

    key: Any
    slot_bytes: int
    said: list[Event] = field(default_factory=list)
    _memory: np.ndarray | None = None

    def send(self, message: Any) -> None:
        self.said.append(Said(self.key, message))

    def slot(self) -> np.ndarray:
        self._memory = np.zeros(self.slot_bytes, np.uint8)
        return self._memory

    def send_slot(self, message: Any) -> None:
        self.said.append(Said(self.key, message, len(self.said), self._memory))


class CrewOfOne:
    """Stands in for `wsi.supervision.Crew`: tasks are done here, where tests replace functions.

    A task is done when its events are asked for; what ends a process ends the test.
    """

    blocked = False

    def __init__(self) -> None:
        self.size = 1
        self._slot_bytes = 0
        self._todo: list[tuple[Any, Callable[..., Any], tuple[Any, ...]]] = []

    @property
    def idle(self) -> int:
        return self.size - self.busy

    @property
    def busy(self) -> int:
        return len(self._todo)

    def share(self, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes

    def give(self, key: Any, call: Callable[..., Any], *args: Any) -> None:
        self._todo.append((key, call, args))

    def free(self, said: Said) -> None:
        pass

    def drop(self, key: Any) -> None:
        self._todo = [task for task in self._todo if task[0] != key]

    def events(self, timeout_s: float, *more: Any) -> Iterator[Event]:
        if not self._todo:
            return
        key, call, args = self._todo.pop(0)
        heard = _Heard(key, self._slot_bytes)
        try:
            end: Event = Ended(key, call(heard, *args))
        except MemoryError:
            end = Lost(key, MEMORY, "it needs too much memory")
        except Exception as error:
            end = Lost(key, BUG, f"{type(error).__name__}: {error}", traceback.format_exc())
        yield from [*heard.said, end]

    def each(
        self, call: Callable[..., Any], items: Iterable[Any], *args: Any
    ) -> Iterator[tuple[Any, Any]]:
        for item in items:
            self.give(0, lambda channel, item=item: call(item, *args))
            (end,) = self.events(0)
            yield item, end.value if isinstance(end, Ended) else end

    def close(self) -> None:
        self._todo = []


@pytest.fixture
def crew_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[CrewOfOne]:
    """Slides are opened in this process, so that what a test replaces is what opens them."""
    crew, threads = CrewOfOne(), cv2.getNumThreads()
    for command in ("preprocess", "scan"):
        monkeypatch.setattr(f"pipelines.{command}.readers", lambda *limits: crew)
    yield crew
    cv2.setNumThreads(threads)
