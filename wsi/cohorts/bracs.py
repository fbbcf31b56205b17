"""BRACS: 547 breast slides of 189 patients in 7 or 3 classes, from its folders and its table.

Folders and table say the same thing twice, and are held against each other. Only the table knows
the patients; without it every slide stands for a patient, and nothing may be divided by patients.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi.cohorts.built import Built, Labels, overlaid, read_overlay, slide_files, with_findings
from wsi.cohorts.cells import Table, read_table
from wsi.cohorts.record import synthetic_beside
from wsi.cohorts.rows import PARTS
from wsi.errors import CohortError, ConfigError
from wsi.files import sha256_file
from wsi.findings import Finding, few, sentence
from wsi.registry import suggest

GROUPS = {"BT": ("N", "PB", "UDH"), "AT": ("FEA", "ADH"), "MT": ("DCIS", "IC")}
"""Benign, atypical and malignant, and the lesion types of each."""

TYPES = tuple(name for names in GROUPS.values() for name in names)
"""Lesion types in order of malignancy; a slide has the most malignant it holds."""

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
CLASSES = {"c7": TYPES, "c3": tuple(GROUPS)}

SLIDES, PATIENTS = 547, 189
OFFICIAL = {"train": 395, "val": 65, "test": 87}
OF_TYPES = (44, 147, 74, 41, 48, 61, 132)
"""Slides and patients of the data set, slides of each part of its own split and of each type."""

_COLUMNS = ("slide_id", "patient_id", "c7", "c3", "split", "path")
_SHEET = "WSI_Information"
_SUFFIXES = (".svs", ".tif", ".tiff")
_TYPE = re.compile(r"^type_([a-z]+)$", re.IGNORECASE)
_FEW_PERCENT = 5  # a class whose share changes by more between training and test is told


@dataclass(frozen=True)
class _Said:
    """What a source says of a slide; empty where it does not."""

    label: str = ""
    split: str = ""
    patient: str = ""


def build(
    root: Path | None,
    labels: Path | None,
    *,
    overlay: Path | None = None,
    accept: bool = False,
) -> Built:
    """Return the cohort of all slides, one row each, with both label columns and the split.

    Args:
        root: folder of the slides as published (`train/Group_BT/Type_N/BRACS_1.svs`); None for the
            table alone, without paths.
        labels: BRACS.xlsx, or a CSV of slide_id, patient_id, label, split; sought below `root`
            when None, and not needed where the folders say everything but the patients.
        overlay: corrections: slide_id, keep, label, reason.
        accept: has no meaning here; contradictions of folders and table are not for acceptance.

    Raises:
        ConfigError: there is neither folder nor table, or the table lacks columns.
        CohortError: folders and table contradict each other, or rows are bad.
    """
    if root is None and labels is None:
        raise ConfigError("give --root with the slides, --labels with BRACS.xlsx, or both")
    files = {} if root is None else slide_files(root, "BRACS_*", _SUFFIXES)
    table_file = labels or _table_below(root)
    table = {} if table_file is None else _read(table_file)
    folders = {slide: _of_folders(path) for slide, path in files.items()}
    said = {
        slide: _joined(folders.get(slide, _Said()), table.get(slide, _Said()))
        for slide in sorted({*folders, *table})
    }
    patients_known = bool(table) and len({s.patient for s in table.values()}) < len(table)
    differs = _unlike_official(said, patients_known)
    labels_of = _labels(table_file, said, differs)
    built = Built("bracs", _COLUMNS, (), labels_of, CLASSES, patients_known=patients_known)
    built = with_findings(built, _not_official(differs, labels_of), accept=accept)
    found = [*_contradictions(folders, table), *_gaps(said), *_fakes(table, patients_known)]
    built = with_findings(built, found, accept=accept)
    if overlay is not None:
        laid = read_overlay(overlay, TYPES)
        kept, finding = overlaid(laid, {slide: one.label for slide, one in said.items()})
        said = {slide: replace(said[slide], label=label) for slide, label in kept.items()}
        built = with_findings(built, [finding], accept=accept)
        built = replace(built, overlay=f"{laid.name} (sha256 {laid.sha256[:12]})")
    rows = tuple(_row(slide, one, files, patients_known) for slide, one in said.items())
    built = replace(built, rows=rows)
    findings = [*_shared_patients(rows), *_shift(rows)]
    if root is not None and table:
        findings += _about_files(files, table)
    return with_findings(built, findings, accept=accept)


def _table_below(root: Path | None) -> Path | None:
    names = ("BRACS.xlsx", "BRACS.csv")
    found = [] if root is None else [path for name in names for path in sorted(root.rglob(name))]
    if len(found) > 1:
        listed = few(path.name for path in found)
        raise ConfigError(f"several tables below {root}: {listed} — name one: --labels")
    return found[0] if found else None


def _unlike_official(said: Mapping[str, _Said], patients_known: bool) -> str:
    """Return in what the slides differ from the published table, in figures; empty if in none."""
    if len(said) != SLIDES:
        return f"{len(said)} of {SLIDES} slides"
    parts = Counter(one.split for one in said.values())
    if parts != OFFICIAL:
        mine, theirs = ("/".join(str(of[part]) for part in OFFICIAL) for of in (parts, OFFICIAL))
        return f"{mine} slides in {'/'.join(OFFICIAL)}, not {theirs}"
    types = Counter(one.label for one in said.values())
    if any(types[name] != n for name, n in zip(TYPES, OF_TYPES, strict=True)):
        mine = "/".join(str(types[name]) for name in TYPES)
        return f"{mine} slides of {'/'.join(TYPES)}, not {'/'.join(map(str, OF_TYPES))}"
    patients = len({one.patient for one in said.values()})
    if patients_known and patients != PATIENTS:
        return f"{patients} patients, not {PATIENTS}"
    return ""


def _not_official(differs: str, labels: Labels) -> Iterator[Finding]:
    if differs and not labels.details["synthetic"]:
        message = f"not the official table: {differs} — published results rest on all of them"
        yield Finding("warning", "not-official", message)


def _labels(path: Path | None, said: Mapping[str, _Said], differs: str) -> Labels:
    counted = Counter(one.label for one in said.values())
    counts = "/".join(str(counted[name]) for name in TYPES)
    drawn = "" if path is None else synthetic_beside(path)
    details = {"slides": len(said), "counts": counts, "synthetic": bool(drawn)}
    what = drawn or ("BRACS labels of no known version" if differs else "BRACS labels")
    if path is None:
        text = f"{what}, of the folders ({counts} of {'/'.join(TYPES)}), patients unknown"
        return Labels(text, "", "", details)
    sha256 = sha256_file(path)
    text = f"{what} ({counts} of {'/'.join(TYPES)}; {path.name}, sha256 {sha256[:12]})"
    return Labels(text, path.name, sha256, details)


# -- what folders and table say ---------------------------------------------------------------


def _of_folders(path: Path) -> _Said:
    parts = path.parts[:-1]
    types = [found[1].upper() for part in parts if (found := _TYPE.match(part))]
    splits = [PARTS[part.lower()] for part in parts if part.lower() in PARTS]
    return _Said(types[-1] if types else "", splits[-1] if splits else "")


def _read(path: Path) -> dict[str, _Said]:
    """Return what a table says, by slide.

    Raises:
        ConfigError: columns are missing.
        CohortError: bad rows, all listed.
    """
    table = read_table(path, _SHEET)
    slide, patient, label, split = _columns(table)
    said: dict[str, _Said] = {}
    problems: list[Finding] = []
    for line in table.lines:
        # Names come with and without extension and folder.
        name = Path(line.cells[slide].replace("\\", "/")).name
        name = Path(name).stem if name.lower().endswith(_SUFFIXES) else name
        type_, part = line.cells[label].upper(), line.cells[split].lower()
        if not name or not line.cells[patient]:
            problems.append(_bad(line.number, "no slide or no patient"))
        elif type_ not in TYPES:
            near = suggest(type_, TYPES)
            problems.append(_bad(line.number, f"{name} has the label '{line.cells[label]}'{near}"))
        elif part not in PARTS:
            problems.append(_bad(line.number, f"{name} is in the part '{line.cells[split]}'"))
        else:
            one = _Said(type_, PARTS[part], line.cells[patient])
            if said.setdefault(name, one) != one:
                problems.append(_bad(line.number, f"{name} stands twice, differently"))
    if problems:
        raise CohortError(sentence(problems, path.name) + " — use the published table")
    return said


def _columns(table: Table) -> tuple[str, str, str, str]:
    plain = {"".join(c for c in name.lower() if c.isalnum()): name for name in table.columns}
    wanted = {
        "slide": ("slideid", "wsifilename", "filename", "slide"),
        "patient": ("patientid", "patient"),
        "label": ("wsilabel", "label", "c7"),
        "split": ("set", "split"),
    }
    found = {
        what: next((plain[name] for name in names if name in plain), None)
        for what, names in wanted.items()
    }
    missing = [what for what, name in found.items() if name is None]
    if missing:
        raise ConfigError(
            f"{table.path.name} has no column for {', '.join(missing)} (it has: "
            f"{', '.join(table.columns)}) — give BRACS.xlsx, or slide_id, patient_id, label, split"
        )
    return tuple(str(name) for name in found.values())  # pyright: ignore[reportReturnType]


def _bad(line: int, problem: str) -> Finding:
    return Finding("error", "labels", f"line {line}: {problem}", (), line)


def _joined(folder: _Said, table: _Said) -> _Said:
    return _Said(table.label or folder.label, table.split or folder.split, table.patient)


# -- what is wrong with it --------------------------------------------------------------------


def _contradictions(folders: Mapping[str, _Said], table: Mapping[str, _Said]) -> Iterator[Finding]:
    for what in ("label", "split"):
        wrong = {}
        for slide, folder in folders.items():
            here, there = getattr(folder, what), getattr(table.get(slide, _Said()), what)
            if here and there and here != there:
                wrong[slide] = f"{slide} {here} by its folder, {there} in the table"
        if wrong:
            message = f"{len(wrong)} slides have two {what}s: {few(wrong.values())} — move the "
            message += "files or correct the table"
            yield Finding("error", f"two-{what}s", message, tuple(wrong))


def _gaps(said: Mapping[str, _Said]) -> Iterator[Finding]:
    for what in ("label", "split"):
        without = tuple(slide for slide, one in said.items() if not getattr(one, what))
        if without:
            message = f"{len(without)} slides have no {what}, in folder or table: {few(without)}"
            yield Finding("error", f"no-{what}", message, without)
    unknown = tuple(s for s, one in said.items() if one.label and one.label not in TYPES)
    if unknown:
        listed = few(f"{slide} {said[slide].label}" for slide in unknown)
        yield Finding("error", "unknown-label", f"folders of no known type: {listed}", unknown)


def _fakes(table: Mapping[str, _Said], patients_known: bool) -> Iterator[Finding]:
    if patients_known:
        return
    source = (
        f"the table gives each of its {len(table)} slides a patient of its own, which BRACS has not"
        if table
        else "folders do not name patients"
    )
    yield Finding(
        "warning",
        "patients-unknown",
        f"{source}: every slide stands for a patient, so splits by patient are refused and "
        "intervals resample slides — give BRACS.xlsx with --labels",
    )


def _shared_patients(rows: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Yield patients in several parts of the official split: its own flaw, kept and told."""
    parts: dict[str, set[str]] = defaultdict(set)
    slides: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        parts[row["patient_id"]].add(row["split"])
        slides[row["patient_id"]].append(f"{row['slide_id']} {row['split']}")
    for patient in sorted(p for p, those in parts.items() if len(those) > 1):
        leaks = "test" in parts[patient]
        where = " and ".join(sorted(parts[patient]))
        message = f"patient {patient} is in {where} of the official split "
        message += f"({few(sorted(slides[patient]), 10)}) — "
        message += "repair it" if leaks else "keep it as published, or move the slides to one part"
        yield Finding("error" if leaks else "warning", "leakage", message, (patient,))


def _shift(rows: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Yield how the shares of classes differ between training and test, which moves scores."""
    train = Counter(row["c3"] for row in rows if row["split"] == "train")
    test = Counter(row["c3"] for row in rows if row["split"] == "test")
    if not train or not test:
        return
    shares = {
        c: (100 * train[c] / sum(train.values()), 100 * test[c] / sum(test.values()))
        for c in CLASSES["c3"]
    }
    moved = {c: two for c, two in shares.items() if abs(two[0] - two[1]) > _FEW_PERCENT}
    if moved:
        listed = ", ".join(f"{c} {a:.0f} % and {b:.0f} %" for c, (a, b) in moved.items())
        yield Finding(
            "info",
            "prior-shift",
            f"classes are not as frequent in training as in test: {listed} — accuracy depends on "
            "it; read macro-F1 and AUC, and consider a rule for another prior",
        )


def _about_files(files: Mapping[str, Path], table: Mapping[str, _Said]) -> Iterator[Finding]:
    absent = tuple(sorted(set(table) - set(files)))
    if absent:
        message = f"{len(absent)} slides of the table are not here: {few(absent)}"
        yield Finding("warning", "no-slide", message, absent)
    spare = tuple(sorted(set(files) - set(table)))
    if spare:
        message = f"{len(spare)} slides are not in the table and have no patient: {few(spare)}"
        yield Finding("error", "no-patient", message, spare)


def _row(slide: str, one: _Said, files: Mapping[str, Path], patients_known: bool) -> dict[str, str]:
    return {
        "slide_id": slide,
        "patient_id": one.patient if patients_known else slide,
        "c7": one.label,
        "c3": GROUP_OF.get(one.label, ""),
        "split": one.split,
        "path": str(files[slide].resolve()) if slide in files else "",
    }
