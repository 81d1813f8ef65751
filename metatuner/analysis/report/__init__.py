"""The report: one HTML file that opens offline, made from a results folder's files."""

from metatuner.analysis.report.page import report

__all__ = ["report"]
