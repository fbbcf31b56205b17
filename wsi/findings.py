"""What a check has found: the common shape of `cohort check`, `splits audit` and `bags audit`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Args:
        severity: `error` stops work, `warning` is printed and recorded, `info` is worth knowing.
        rule: short name of the rule, stable for scripts: `leakage`, `unknown-label`.
        message: one line: what, where, and what to do.
        ids: the slide or patient ids it is about.
        line: line of the table, counted from 1 with the header, where there is one.
    """

    severity: Severity
    rule: str
    message: str
    ids: tuple[str, ...] = ()
    line: int | None = None


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that stop work."""
    return [finding for finding in findings if finding.severity == "error"]


def sentence(findings: list[Finding], heading: str) -> str:
    """Return one error message that lists every finding, one to a line after the heading."""
    if len(findings) == 1:
        return f"{heading}: {findings[0].message}"
    listed = "".join(f"\n  {finding.message}" for finding in findings)
    return f"{heading}, {len(findings)} problems:{listed}"


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: `1 slide`, `1,204 tiles`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def few(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names and how many more there are: `a, b, c and 14 more`."""
    listed = list(names)
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")
