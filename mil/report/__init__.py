"""Results -> the report: one HTML file that opens without a network, and a slide viewer beside it."""

from mil.report.build import build
from mil.report.slide_viewer import write_viewer

__all__ = ["build", "write_viewer"]
