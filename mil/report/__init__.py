"""Results -> the report: an HTML file that opens without a network, checklists, model cards, tables, a slide viewer."""

from mil.report.build import build
from mil.report.slide_viewer import write_viewer

__all__ = ["build", "write_viewer"]
