"""Which bag is each slide's, and which slides make one bag: each its own, or all of a patient."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.console import Console, counted
from wsi.cohorts import Cohort, slides_of_patients
from wsi.cohorts.patients import several_sites
from wsi.errors import ConfigError
from wsi.files import publish_bytes
from wsi.findings import few
from wsi.specs import Config


@dataclass(frozen=True, eq=False)
class BagIds(Mapping[str, str]):
    """Slide id to id of its bag, of all slides that are used.

    Attributes:
        patients: ids of the slides of every patient whose slides make one bag; empty where every
            slide is a bag of its own.
    """

    of_slides: Mapping[str, str]
    patients: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, slide_id: str) -> str:
        return self.of_slides[slide_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of_slides)

    def __len__(self) -> int:
        return len(self.of_slides)

    def together(self, sample_id: str) -> tuple[str, ...]:
        """Return the ids of the bags that make up one sample: a patient, or else a slide."""
        if not self.patients:
            return (self.of_slides[sample_id],)
        return tuple(self.of_slides[slide_id] for slide_id in self.patients[sample_id])

    def counts(self) -> dict[str, int]:
        """Return the number of slides of every patient; empty where every slide is a bag."""
        return {patient: len(slides) for patient, slides in self.patients.items()}


def patients_without(
    cohort: Cohort, used: Mapping[str, object], absent: Mapping[str, str]
) -> dict[str, str]:
    """Return why patients cannot be used, all of whose slides are absent.

    Args:
        cohort: all slides of the table.
        used: patients with a slide that is used.
        absent: why slides are not used, by id.
    """
    found = {}
    for patient, slides in slides_of_patients(cohort).items():
        if patient not in used:
            reasons = dict.fromkeys(absent[slide_id] for slide_id in slides if slide_id in absent)
            found[patient] = f"no slide with a bag ({'; '.join(reasons)})"
    return found


def say_patients(
    slides: Cohort, bag_ids: BagIds, absent: Mapping[str, str], whole: Cohort, console: Console
) -> None:
    """Say how slides make up patients, and which patients lack some of theirs."""
    sizes = list(bag_ids.counts().values())
    console.say(
        f"one bag per patient: {counted(len(sizes), 'patient')} of {counted(sum(sizes), 'slide')}, "
        f"{min(sizes)} to {max(sizes)} each"
    )
    owner = {row.slide_id: row.patient_id for row in whole.rows}
    lacking = Counter(owner[s] for s in absent if owner[s] in bag_ids.patients)
    if lacking:
        reasons = Counter(absent[s] for s in absent if owner[s] in bag_ids.patients)
        listed = "; ".join(f"{counted(n, 'slide')}: {reason}" for reason, n in reasons.items())
        console.warn(
            f"{counted(len(lacking), 'patient')} used without some of their slides ({listed}): "
            f"{few(sorted(lacking))}"
        )
    sites = several_sites(slides)
    if sites:
        console.warn(
            f"{counted(len(sites), 'patient')} with slides of several sites, counted under the "
            f"one of most slides: {few(sites)}"
        )


def write_patients(
    root: Path, bag_ids: BagIds, absent: Mapping[str, str], whole: Cohort
) -> Path | None:
    """Write which slides make which patient's bag, and why others do not; None without patients."""
    if not bag_ids.patients:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient_id", "slide_id", "bag", "left_out"])
    for patient, slides in slides_of_patients(whole).items():
        for slide_id in slides:
            bag = bag_ids.of_slides.get(slide_id, "")
            writer.writerow([patient, slide_id, bag, "" if bag else absent.get(slide_id, "")])
    path = root / "patients.csv"
    publish_bytes(path, text.getvalue().encode())
    return path


def read_slide_counts(root: Path) -> dict[str, int]:
    """Return the slides in the bag of every patient of a run; empty where slides are bags."""
    path = root / "patients.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as handle:
        return dict(Counter(row["patient_id"] for row in csv.DictReader(handle) if row["bag"]))


def refuse_patients(config: Config, root: Path, what: str) -> None:
    """Raise ConfigError where a run is of bags of patients, of which `what` is not made."""
    if config.data.bag == "patient":
        raise ConfigError(
            f"{root} was trained on one bag per patient (data.bag=patient), and {what} are made "
            "for single slides — train with data.bag=slide for them; `wsi evaluate --level "
            "patient` then scores by patient"
        )
