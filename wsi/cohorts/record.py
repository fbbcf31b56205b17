"""What a built cohort table says of itself: the labels it rests on, and what was accepted.

The record lies beside the table, as `<stem>.json`. Results name the labels from it, since labels
of one data set circulate in versions that change scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsi.errors import CohortError
from wsi.files import publish_json, sha256_file

SCHEMA = "wsi-cohort/1"


@dataclass(frozen=True)
class Record:
    """Where the labels of a table come from.

    Attributes:
        cohort: name of the builder.
        labels: one line that results carry: which labels, which version, their hash.
        accepted: contradictions in the labels that the user took knowingly.
        patients_known: whether patient ids are the source's own; otherwise every slide stands for
            a patient, and nothing may be divided or resampled by patients.
        patients_mixed: whether the source mixed slides of several people into one patient, so that
            dividing by patient does not keep a person on one side.
        details: whatever else the builder found, as JSON has it.
    """

    cohort: str
    labels: str
    accepted: tuple[str, ...] = ()
    patients_known: bool = True
    patients_mixed: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Return the labels in one line, with what was accepted."""
        if not self.accepted:
            return self.labels
        return f"{self.labels}, accepted although: {'; '.join(self.accepted)}"


def write_record(record: Record, table: Path) -> None:
    """Write the record of `table`, which must be there."""
    body = {"schema": SCHEMA, **asdict(record), "table_sha256": sha256_file(table)}
    publish_json(table.with_suffix(".json"), body)


def synthetic_beside(labels: Path) -> str:
    """Return what the record beside a file of drawn labels says of them; empty beside others."""
    found = read_record(labels)
    drawn = found is not None and found[0].details.get("synthetic") is True
    return found[0].labels if found is not None and drawn else ""


def read_record(table: Path) -> tuple[Record, bool] | None:
    """Return the record of a table and whether the table is as it was written; None without one.

    Raises:
        CohortError: the record is damaged.
    """
    path = table.with_suffix(".json")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return None  # some other JSON that happens to lie there
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        return None
    try:
        record = Record(
            cohort=str(body["cohort"]),
            labels=str(body["labels"]),
            accepted=tuple(map(str, body["accepted"])),
            patients_known=bool(body["patients_known"]),
            patients_mixed=bool(body.get("patients_mixed", False)),
            details=dict(body["details"]),
        )
        return record, body["table_sha256"] == sha256_file(table)
    except (KeyError, TypeError, ValueError) as error:
        raise CohortError(
            f"{path.name} is no record of a cohort table ({error}) — build the table anew"
        ) from error
