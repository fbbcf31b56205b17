"""CAMELYON-17's labels: reading them, telling the versions in circulation apart, the pN rule.

Three versions of the node labels are behind published results. Which one a file holds is told
from its content, not from its name or bytes; see `VERSIONS`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.cohorts.record import synthetic_beside
from wsi.errors import CohortError, ConfigError
from wsi.files import sha256_file
from wsi.findings import Finding, few, sentence
from wsi.registry import suggest

NODE_CLASSES = ("negative", "itc", "micro", "macro")
"""Labels of a node: no tumour, isolated tumour cells, micro- and macrometastasis."""

STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""Stages of a patient, in order."""

NODES, PATIENTS, NODES_PER_PATIENT = 500, 100, 5

VERSIONS = {
    "6bf11c0bf5248db5369aa57e34ba7c2130b8cf2f74418964d1376b4092acb003": "a",
    "ab51cd1b5eb6d2db3f177845ebe0d751cb5d874e670bbe8b3b8e71849f197c36": "b",
    "2f8afeddaed08781ebd6fe60057db3a6c1ef98842afb02cf72bbdca0fb65ee0a": "c",
}
"""SHA-256 of the sorted lines `<node>,<label>` of the 500 training nodes, to the version.

a (323 negative, 35 itc, 57 micro, 85 macro) calls four annotated nodes negative; b (313, 35, 64,
88) none; c (318, 36, 59, 87) comes without stages and is behind several published tables.
"""

_ANNOTATED = (
    "004_4 009_1 010_4 012_0 015_1 015_2 016_1 017_1 017_2 017_4 020_2 020_4 021_3 022_4 024_1 "
    "024_2 034_3 036_3 038_2 039_1 040_2 041_0 042_3 044_4 045_1 046_3 046_4 048_1 051_2 052_1 "
    "060_3 061_4 062_2 064_0 066_2 067_4 068_1 072_0 073_1 075_4 080_1 081_4 086_0 086_4 087_0 "
    "088_1 089_3 092_1 096_0 099_4"
)
ANNOTATED = tuple("patient_{}_node_{}".format(*name.split("_")) for name in _ANNOTATED.split())
"""The 50 nodes that the data set draws lesions on: none of them can be negative."""

_NAME = re.compile(r"^(patient_\d{3})(_node_\d)?(?:\.(?:zip|tiff?))?$", re.IGNORECASE)
_TELLS = "the challenge's own file"


@dataclass(frozen=True)
class NodeLabels:
    """The content of a label file.

    Attributes:
        nodes: node to label.
        stages: patient to stage; empty where the file has none.
        synthetic: what the record beside drawn labels says of them; empty for any others.
    """

    file: str
    sha256: str
    nodes: Mapping[str, str]
    stages: Mapping[str, str]
    synthetic: str = ""

    @property
    def version(self) -> str | None:
        """Return `a`, `b` or `c`, or None for labels that are none of these."""
        lines = "\n".join(f"{node},{self.nodes[node]}" for node in sorted(self.nodes))
        return VERSIONS.get(hashlib.sha256(lines.encode()).hexdigest())

    @property
    def counts(self) -> str:
        """Return the nodes of each class, in order: `313/35/64/88`."""
        counted = Counter(self.nodes.values())
        return "/".join(str(counted[name]) for name in NODE_CLASSES)

    @property
    def line(self) -> str:
        """Return what results say of these labels."""
        version = f"version {self.version}" if self.version else "of no known version"
        what = self.synthetic or f"CAMELYON-17 node labels {version}"
        return (
            f"{what} ({self.counts} of {'/'.join(NODE_CLASSES)}; "
            f"{self.file}, sha256 {self.sha256[:12]})"
        )


def pn_stage(nodes: Sequence[str]) -> str:
    """Return the pN stage of a patient from the labels of the nodes.

    Metastases count from micro on; isolated tumour cells never do. Source: the CAMELYON17
    challenge's rules (Bandi et al. 2019, IEEE TMI 38(2), table II).

    Raises:
        CohortError: a label is none of `NODE_CLASSES`, or there is no node.
    """
    unknown = sorted(set(nodes) - set(NODE_CLASSES))
    if unknown or not nodes:
        raise CohortError(
            f"no pN stage from nodes {', '.join(unknown) or 'of no label'} — "
            f"nodes are {', '.join(NODE_CLASSES)}"
        )
    counts = Counter(nodes)
    if counts["macro"]:
        return "pN2" if counts["macro"] + counts["micro"] >= 4 else "pN1"
    if counts["micro"]:
        return "pN1mi"
    return "pN0(i+)" if counts["itc"] else "pN0"


def patient_of(node: str) -> str:
    """Return the patient of a node: `patient_017` of `patient_017_node_2`."""
    return node.rpartition("_node_")[0]


def read_labels(path: Path) -> NodeLabels:
    """Return the labels of a file: nodes and, in the challenge's own, stages of patients.

    Understood are `patient,stage` with rows of nodes and of patients, and `slide_id,label`.

    Raises:
        ConfigError: no such file, or other columns.
        CohortError: bad rows, all listed.
    """
    table = read_table(path)
    name, value = _columns(table)
    _refuse_other_classes(table, value)
    nodes: dict[str, str] = {}
    stages: dict[str, str] = {}
    problems: list[Finding] = []
    for line in table.lines:
        found = _NAME.match(line.cells[name])
        if found is None:
            problems.append(_bad(line.number, f"'{line.cells[name]}' is no patient and no node"))
            continue
        target, known = (nodes, NODE_CLASSES) if found[2] else (stages, STAGES)
        key, label = (found[1] + (found[2] or "")).lower(), line.cells[value]
        if label not in known:
            near = suggest(label, known)
            problems.append(_bad(line.number, f"{key} has '{label}'{near}, not {', '.join(known)}"))
        elif target.setdefault(key, label) != label:
            problems.append(_bad(line.number, f"{key} is {target[key]} and {label}"))
    if not nodes:
        problems.append(Finding("error", "empty", "no node has a label"))
    if problems:
        raise CohortError(sentence(problems, path.name) + f" — use {_TELLS}")
    return NodeLabels(path.name, sha256_file(path), nodes, stages, synthetic_beside(path))


def _refuse_other_classes(table: Table, value: str) -> None:
    """Raise CohortError where no label is one of ours, as in tables of two classes."""
    found = Counter(line.cells[value] for line in table.lines)
    if found and not set(found) & {*NODE_CLASSES, *STAGES}:
        listed = few(f"{label} ({n})" for label, n in found.items())
        if len(found) > 2:
            raise CohortError(
                f"{table.path.name} has the labels {listed}, none of {', '.join(NODE_CLASSES)}: it "
                "is no CAMELYON-17 label file — of BRACS, `wsi cohort build bracs` makes the table"
            )
        raise CohortError(
            f"{table.path.name} has the labels {listed}, none of {', '.join(NODE_CLASSES)} — two "
            f"classes do not tell the versions apart, nor where itc counts; use {_TELLS}"
        )


def _columns(table: Table) -> tuple[str, str]:
    lower = {column.lower(): column for column in table.columns}
    for name, value in (("patient", "stage"), ("slide_id", "label")):
        if name in lower and value in lower:
            return lower[name], lower[value]
    raise ConfigError(
        f"{table.path.name} has the columns {', '.join(table.columns)} — give {_TELLS} "
        "(patient,stage) or a table of slide_id,label"
    )


def _bad(line: int, problem: str) -> Finding:
    return Finding("error", "labels", f"line {line}: {problem}", (), line)


def check_labels(labels: NodeLabels, annotated: Collection[str] = ANNOTATED) -> list[Finding]:
    """Return what is known to be wrong or worth knowing about a file of labels.

    Args:
        annotated: nodes that lesions were drawn on.
    """
    findings = [*_annotated_negative(labels, annotated), *_against_the_rule(labels)]
    if labels.version is None and not labels.synthetic:
        findings.append(
            Finding(
                "warning",
                "unknown-version",
                f"{labels.file}: {len(labels.nodes)} nodes ({labels.counts} of "
                f"{'/'.join(NODE_CLASSES)}) of no version known here, sha256 "
                f"{labels.sha256[:12]} — published results rest on versions a, b and c of "
                f"{NODES} nodes",
            )
        )
    findings += _incomplete(labels)
    if derived := stages_derived(labels):
        findings.append(Finding("info", "stages-derived", derived))
    return findings


def stages_derived(labels: NodeLabels) -> str:
    """Return that a file without stages has them from its nodes; empty for one that has some."""
    n = len(staged(labels.nodes, {}))
    if labels.stages or not n:
        return ""
    return (
        f"{labels.file} has no stages: those of {n} patients are derived from the nodes by the "
        "pN rule"
    )


def _annotated_negative(labels: NodeLabels, annotated: Collection[str]) -> Iterator[Finding]:
    wrong = tuple(sorted(n for n in annotated if labels.nodes.get(n) == "negative"))
    if wrong:
        yield Finding(
            "error",
            "contradicted-labels",
            f"{len(wrong)} nodes with drawn lesions are called negative: {few(wrong, 50)} — "
            "use the corrected labels (version b), or take these with --accept-labels, which "
            "every result then says",
            wrong,
        )


def _against_the_rule(labels: NodeLabels) -> Iterator[Finding]:
    of_patient: dict[str, list[str]] = defaultdict(list)
    for node, label in labels.nodes.items():
        of_patient[patient_of(node)].append(label)
    wrong = {
        patient: f"{patient} {stage} is {pn_stage(of_patient[patient])} by its nodes"
        for patient, stage in sorted(labels.stages.items())
        if len(of_patient[patient]) == NODES_PER_PATIENT and pn_stage(of_patient[patient]) != stage
    }
    if wrong:
        yield Finding(
            "error",
            "contradicted-labels",
            f"{len(wrong)} stages contradict their nodes: {few(wrong.values())} — use "
            f"{_TELLS}, or take these with --accept-labels, which every result then says",
            tuple(wrong),
        )


def _incomplete(labels: NodeLabels) -> Iterator[Finding]:
    counts = Counter(map(patient_of, labels.nodes))
    short = tuple(sorted(p for p, n in counts.items() if n != NODES_PER_PATIENT))
    if short:
        message = f"{len(short)} patients do not have {NODES_PER_PATIENT} nodes: {few(short)}"
        yield Finding("warning", "nodes", message, short)
    if labels.stages and (without := tuple(sorted(set(counts) - set(labels.stages)))):
        message = f"{len(without)} patients have no stage: {few(without)}"
        yield Finding("warning", "stages", message, without)


def staged(nodes: Mapping[str, str], stages: Mapping[str, str]) -> dict[str, str]:
    """Return the stage of every patient all of whose nodes are labelled, or who is given one."""
    of_patient: dict[str, list[str]] = defaultdict(list)
    for node, label in nodes.items():
        of_patient[patient_of(node)].append(label)
    by_rule = {p: pn_stage(ls) for p, ls in of_patient.items() if len(ls) == NODES_PER_PATIENT}
    return by_rule | {p: stage for p, stage in stages.items() if p in of_patient}
