"""A small synthetic cohort: slides of three classes over three sites, with lesions and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi.cohorts.record import Record, write_record
from wsi.files import publish_bytes
from wsi.slides.synthetic import CLASSES, SITES, Site, Tissue, write_synthetic


@dataclass(frozen=True)
class Planned:
    """One slide to draw."""

    slide_id: str
    patient_id: str
    label: str
    site: Site
    seed: int


def plan_cohort(
    per_class_and_site: int = 4, seed: int = 0, sites: Sequence[Site] = SITES
) -> list[Planned]:
    """Return the slides of a synthetic cohort: every third patient has two.

    Patients have one class and one site, so grouped and stratified splits are possible.
    """
    rng = np.random.default_rng(seed)
    planned = []
    for site in sites:
        patients = 0
        for label in CLASSES:
            for k in range(per_class_and_site):
                patients += k % 4 != 1  # the second slide of four is the first's patient again
                slide_id = f"site-{site.name}_{len(planned):02d}"
                patient_id = f"{site.name}{patients:02d}"
                draw = int(rng.integers(2**31))
                planned.append(Planned(slide_id, patient_id, label, site, draw))
    return planned


def slide_path(planned: Planned, folder: Path) -> Path:
    """Return where a planned slide lies in `folder`."""
    return folder / f"{planned.slide_id}{'.svs' if planned.site.dress == 'aperio' else '.tiff'}"


def write_slide_of(planned: Planned, folder: Path, tissue: Tissue | None = None) -> Path:
    """Draw one slide into `folder` and return its path; its lesions go beside it as GeoJSON."""
    path = slide_path(planned, folder)
    write_synthetic(path, planned.label, planned.site, planned.seed, tissue)
    return path


def write_table(planned: list[Planned], paths: list[Path], table: Path) -> None:
    """Write the cohort table, and beside it that its slides are drawn; paths are relative to it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "patient_id", "label", "site", "path"])
    writer.writerows(_rows(planned, paths, table.parent))
    publish_bytes(table, text.getvalue().encode())
    labels = "synthetic slides, drawn by wsi with their labels"
    write_record(Record("synthetic", labels, details={"synthetic": True}), table)


def _rows(planned: list[Planned], paths: list[Path], root: Path) -> Iterator[list[str]]:
    for item, path in zip(planned, paths, strict=True):
        relative = path.relative_to(root).as_posix()
        yield [item.slide_id, item.patient_id, item.label, item.site.name, relative]
