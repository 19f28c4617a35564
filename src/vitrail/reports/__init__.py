"""One page per run that a person likes to look at, and the same as JSON."""

from vitrail.reports.content import Command, DataSummary, EpochRow, ErrorCase, Picture, RunReport
from vitrail.reports.html import write_report

__all__ = ["Command", "DataSummary", "EpochRow", "ErrorCase", "Picture", "RunReport", "write_report"]
