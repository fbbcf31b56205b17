"""Miniature CAMELYON-17 and BRACS: synthetic slides in the folders and tables of the real ones.

For tutorials and tests: every step that the real data sets take can be taken in minutes. The
lesions are drawn, so scores say nothing about the real ones.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from shapely.geometry import Polygon

from wsi.cohorts.bracs import GROUP_OF, TYPES
from wsi.cohorts.camelyon17_labels import pn_stage
from wsi.cohorts.record import Record, write_record
from wsi.errors import ConfigError
from wsi.files import publish_bytes
from wsi.slides.synthetic import SITES, Site, Tissue, write_synthetic

NAMES = ("camelyon17", "bracs")
SIZE_UM = (768, 576)

_LESIONS = {
    "itc": ("small-cell", (0.05, 0.07)),
    "micro": ("large-cell", (0.05, 0.07)),
    "macro": ("large-cell", (0.2, 0.25)),
}
_PATIENTS = ("patient_000", "patient_025", "patient_043", "patient_063", "patient_082")
"""One of each centre, without nodes that lesions are drawn on in the real data set."""

_NODES = (
    ("negative", "negative", "itc", "negative", "negative"),
    ("micro", "negative", "negative", "itc", "negative"),
    ("negative", "macro", "micro", "negative", "itc"),
    ("macro", "micro", "negative", "micro", "macro"),
    ("itc", "macro", "negative", "macro", "micro"),
)
"""Any three of the five patients have every class, so that two can be left out."""

_LOOKS = {"BT": "normal", "AT": "small-cell", "MT": "large-cell"}
_FOLDERS = {"train": "Training", "val": "Validation", "test": "Testing"}


@dataclass(frozen=True)
class Slide:
    """One slide to draw.

    Attributes:
        path: below the root.
        kind: what of synthetic tissue it shows.
        share: (lowest, highest) share of the tissue that the lesion takes.
        lesions: where its outline goes as ASAP XML, below the root; None for nowhere.
    """

    path: str
    kind: str
    site: Site
    seed: int
    share: tuple[float, float]
    lesions: str | None = None

    def write(self, root: Path) -> None:
        """Draw the slide."""
        path = root / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        tissue = Tissue(size_um=SIZE_UM, lesion_share=self.share)
        drawing = write_synthetic(path, self.kind, self.site, self.seed, tissue)
        path.with_suffix(".geojson").unlink()  # the real data sets have none
        if self.lesions is not None:
            scale = 0.5 / self.site.mpp
            publish_bytes(root / self.lesions, _asap(drawing.lesions, scale))


@dataclass(frozen=True)
class Tree:
    """A data set in the making: its name, its slides, and its tables by path."""

    name: str
    slides: tuple[Slide, ...]
    tables: dict[str, str]

    def write_tables(self, root: Path) -> None:
        """Write the tables, after the slides, each with a record that its labels are drawn."""
        labels = f"synthetic slides of a miniature of {self.name}, with drawn labels"
        record = Record(self.name, labels, details={"synthetic": True})
        for path, text in self.tables.items():
            publish_bytes(root / path, text.encode())
            write_record(record, root / path)


def plan(name: str, seed: int = 0) -> Tree:
    """Return the miniature of a data set.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "camelyon17":
        return _camelyon17(np.random.default_rng([seed, 17]))
    if name == "bracs":
        return _bracs(np.random.default_rng([seed, 7]))
    raise ConfigError(f"no miniature of '{name}' — there are {', '.join(NAMES)}")


def _camelyon17(rng: np.random.Generator) -> Tree:
    """Return one patient of five nodes from each of the five centres."""
    slides, rows = [], []
    for centre, patient in enumerate(_PATIENTS):
        labels = _NODES[centre]
        rows.append((f"{patient}.zip", pn_stage(labels)))
        for k, label in enumerate(labels):
            node = f"{patient}_node_{k}"
            rows.append((f"{node}.tif", label))
            kind, share = _LESIONS.get(label, ("normal", (0.1, 0.1)))
            drawn = label in ("micro", "macro")
            slides.append(
                Slide(
                    f"training/center_{centre}/{node}.tif",
                    kind,
                    _centre(centre),
                    int(rng.integers(2**31)),
                    share,
                    f"training/lesion_annotations/{node}.xml" if drawn else None,
                )
            )
    table = _csv(("patient", "stage"), rows)
    return Tree("CAMELYON-17", tuple(slides), {"training/stage_labels.csv": table})


def _centre(k: int) -> Site:
    """Return a scanner and stain for each centre, as TIFF of the challenge's kind."""
    site = SITES[k % len(SITES)]
    stronger = 1.0 if k < len(SITES) else 1.2
    strength = (site.strength[0] * stronger, site.strength[1] / stronger)
    return replace(site, name=str(k), dress="generic", strength=strength)


def _bracs(rng: np.random.Generator) -> Tree:
    """Return two training slides, one validation and one test slide of each type."""
    slides, rows = [], []
    number, patient = 1000, 0
    for part, times in (("train", 2), ("val", 1), ("test", 1)):
        for type_ in TYPES:
            for k in range(times):
                number += 1
                patient += k == 0  # the two training slides of a type are one patient's
                name = f"BRACS_{number}"
                grade = TYPES.index(type_) + 1
                folder = f"BRACS_WSI/{part}/Group_{GROUP_OF[type_]}/Type_{type_}"
                slides.append(
                    Slide(
                        f"{folder}/{name}.svs",
                        _LOOKS[GROUP_OF[type_]],
                        replace(SITES[2], name="at2"),
                        int(rng.integers(2**31)),
                        (0.1 + 0.02 * grade, 0.12 + 0.02 * grade),
                    )
                )
                rows.append((name, str(patient), "0", type_, _FOLDERS[part]))
    header = ("WSI Filename", "Patient Id", "RoI", "WSI label", "Set")
    return Tree("BRACS", tuple(slides), {"BRACS.csv": _csv(header, rows)})


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _asap(outlines: Sequence[Polygon], scale: float) -> bytes:
    """Return outlines in drawing pixels as ASAP writes lesions of CAMELYON-17."""
    top = ElementTree.Element("ASAP_Annotations")
    shapes = ElementTree.SubElement(top, "Annotations")
    for k, outline in enumerate(outlines):
        shape = ElementTree.SubElement(
            shapes,
            "Annotation",
            {"Name": f"Annotation {k}", "Type": "Polygon", "PartOfGroup": "metastases"},
        )
        corners = ElementTree.SubElement(shape, "Coordinates")
        for order, (x, y) in enumerate(outline.exterior.coords[:-1]):
            place = {"Order": str(order), "X": f"{x * scale:.2f}", "Y": f"{y * scale:.2f}"}
            ElementTree.SubElement(corners, "Coordinate", place)
    groups = ElementTree.SubElement(top, "AnnotationGroups")
    ElementTree.SubElement(
        groups, "Group", {"Name": "metastases", "PartOfGroup": "None", "Color": "#ff0000"}
    )
    return ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
