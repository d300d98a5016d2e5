"""Results -> the report: one HTML file that opens without a network."""

from mil.report.build import build

__all__ = ["build"]
