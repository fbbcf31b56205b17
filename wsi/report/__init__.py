"""The report: one offline page for the figures of one or several runs."""

from __future__ import annotations

from wsi.report.page import write_report
from wsi.report.summary import Example, PartRow, RunSummary

__all__ = ["Example", "PartRow", "RunSummary", "write_report"]
