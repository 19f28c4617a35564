"""One page per run, and one per source of images, that a person likes to look at; the same as JSON."""

from vitrail.reports.content import Command, DataSummary, EpochRow, ErrorCase, LabelsCase, Picture, RunReport
from vitrail.reports.datapage import DataPage, ShownFinding, ShownPair, ShownPicture, write_data_page
from vitrail.reports.html import write_report
from vitrail.reports.sweeppage import SweepPage, write_sweep_page

__all__ = [
    "Command",
    "DataPage",
    "DataSummary",
    "EpochRow",
    "ErrorCase",
    "LabelsCase",
    "Picture",
    "RunReport",
    "ShownFinding",
    "ShownPair",
    "ShownPicture",
    "SweepPage",
    "write_data_page",
    "write_report",
    "write_sweep_page",
]
