"""The models of a run that predict new slides, and which of them a slide has trained."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pipelines.config
from pipelines.explain_models import cell_of, model_hashes
from pipelines.run_bags import RunBags, UsedBag, read_run_bags
from pipelines.rundir import RunDir
from wsi.errors import BagCorruptError, ConfigError
from wsi.evaluation import read_predictions
from wsi.evaluation.validated import Calibration
from wsi.files import sha256_file
from wsi.findings import few
from wsi.specs import Config

if TYPE_CHECKING:
    from wsi.bags import BagInfo
    from wsi.training.model import Model

_SEEN = ("train", "val")  # a validation part picks epoch and temperature, so it is no test either


@dataclass(frozen=True)
class Member:
    """One model of the ensemble."""

    folder: Path
    fold: int
    seed: int
    sha256: str

    @property
    def path(self) -> Path:
        return self.folder / "model.safetensors"


@dataclass(frozen=True)
class Relation:
    """What a run knows of a slide that is to be predicted.

    Attributes:
        how: why it counts as a slide of the run: `id`, `file` or both; empty when it does not.
        own: folds whose models were fitted or picked by the slide itself.
        patient: folds whose models were so by another slide of its patient.
        patient_id: of the slide in the run, where its file is the same; empty otherwise.
    """

    how: str = ""
    patient_id: str = ""
    own: frozenset[int] = frozenset()
    patient: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Trained:
    """The slides of a run: their parts, patients, sites and files."""

    parts: Mapping[str, Mapping[int, str]]
    patients: Mapping[str, str]
    bags: Mapping[str, UsedBag]
    sites: frozenset[str] = frozenset()

    def relation(self, slide_id: str, patient_id: str, info: BagInfo | None) -> Relation:
        """Return what the run knows of a slide.

        A slide with the name of one of the run counts as it, wherever it lies, and whatever its
        file: better a test slide too few than one that was trained on.

        Args:
            patient_id: empty where unknown.
            info: of its bag; None where it has none.
        """
        named = {s for s in (slide_id, slide_id.rpartition("/")[2]) if s in self.parts}
        named |= self._of_bag.get(slide_id, set())
        files: set[str] = set()
        if info is not None:
            files |= self._of_file.get(str(info.provenance.slide["fingerprint"]), set())
            files |= self._of_hash.get(info.sha256 or "-", set())
        mine = next((self.patients[s] for s in sorted(files)), "")
        patient = patient_id or mine or next((self.patients[s] for s in sorted(named)), "")
        mates = self._of_patient.get(patient, set()) if patient else set()
        how = " and ".join(word for word, found in (("id", named), ("file", files)) if found)
        own = self._folds(named | files)
        return Relation(how, mine, own, self._folds(mates) - own)

    def _folds(self, slides: Collection[str]) -> frozenset[int]:
        return frozenset(
            fold for s in slides for fold, part in self.parts[s].items() if part in _SEEN
        )

    @cached_property
    def _of_bag(self) -> Mapping[str, set[str]]:
        return _inverse({s: used.bag for s, used in self.bags.items()}, self.parts)

    @cached_property
    def _of_file(self) -> Mapping[str, set[str]]:
        return _inverse({s: used.slide for s, used in self.bags.items()}, self.parts)

    @cached_property
    def _of_hash(self) -> Mapping[str, set[str]]:
        return _inverse({s: used.sha256 for s, used in self.bags.items()}, self.parts)

    @cached_property
    def _of_patient(self) -> Mapping[str, set[str]]:
        return _inverse(self.patients, self.parts)


def _inverse(values: Mapping[str, str], among: Collection[str]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for slide_id, value in values.items():
        if value and slide_id in among:
            found[value].add(slide_id)
    return found


@dataclass(frozen=True, eq=False)
class RunEnsemble:
    """The finished models of a run, those asked for.

    Attributes:
        trained: the slides of the run.
        bags: what they were made of.
        ordered: the classes are grades.
        calibration: what the validation part of each model settled.
    """

    run_dir: RunDir
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    trained: Trained
    bags: RunBags
    ordered: bool = False
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    _loaded: dict[Path, Model] = field(default_factory=dict)

    @cached_property
    def config(self) -> Config:
        """Return the settings of the run."""
        return pipelines.config.read_config(self.run_dir.config)

    def model(self, member: Member) -> Model:
        """Return a loaded model.

        Raises:
            BagCorruptError: its file is not what training has left.
        """
        from wsi.training import load

        if member.path not in self._loaded:
            if sha256_file(member.path) != member.sha256:
                raise BagCorruptError(
                    f"{member.path} was changed since it was trained — restore it, or train again"
                )
            self._loaded[member.path], _ = load(member.path)
        return self._loaded[member.path]


def run_ensemble(root: Path, folds: Sequence[int] = (), seeds: Sequence[int] = ()) -> RunEnsemble:
    """Return the models of the run at `root`, of these folds and seeds, or of all.

    Raises:
        ConfigError: the folder is no run, holds no finished fit, or none of those asked for.
    """
    run_dir = RunDir(root)
    run_dir.read_inputs()
    hashes = model_hashes(run_dir.cells())
    if not hashes or not run_dir.predictions.is_file():
        raise ConfigError(f"{root} holds no finished run — let `wsi train` finish it first")
    members = [Member(cell, *cell_of(cell), sha256) for cell, sha256 in hashes.items()]
    for what, wanted, have in (
        ("fold", folds, {m.fold for m in members}),
        ("seed", seeds, {m.seed for m in members}),
    ):
        absent = [str(n) for n in wanted if n not in have]
        if absent:
            raise ConfigError(
                f"{root} has no {what} {few(absent)} — it has {few(map(str, sorted(have)))}"
            )
    chosen = [m for m in members if m.fold in (folds or {m.fold}) and m.seed in (seeds or {m.seed})]
    table = read_predictions(run_dir.predictions)
    bags = read_run_bags(run_dir)
    sites = frozenset(site for site in table.table["site"] if site)
    parts, patients = _slides_of(run_dir.splits)
    trained = Trained(parts, patients, bags.slides, sites)
    return RunEnsemble(
        run_dir,
        table.classes,
        tuple(sorted(chosen, key=_order)),
        trained,
        bags,
        table.ordered,
        table.calibration,
    )


def _order(member: Member) -> tuple[int, int]:
    return member.fold, member.seed


def _slides_of(path: Path) -> tuple[dict[str, dict[int, str]], dict[str, str]]:
    """Return the part of every slide in each fold, and its patient."""
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    patients: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            parts[row["slide_id"]][int(row["fold"])] = row["part"]
            patients[row["slide_id"]] = row["patient_id"]
    return dict(parts), patients
