"""The report's tables -> files for a manuscript: CSV, and LaTeX for the package booktabs."""

from collections.abc import Mapping

import pandas as pd

from mil.report.cells import ReportTable
from mil.tables import csv_text

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "Δ": r"$\Delta$",
        "µ": r"\textmu{}",
        "²": "$^2$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "<": "$<$",
        ">": "$>$",
        "…": r"\ldots{}",
    }
)
"""Characters that LaTeX reads as commands, or that pdfLaTeX does not set by itself."""


def table_files(tables: Mapping[str, ReportTable]) -> dict[str, str]:
    """`NAME.csv` and `NAME.tex` of each table; cells are the text that the report shows."""
    files = {}
    for name, table in tables.items():
        rows = [[("  " if cell.indented else "") + cell.text for cell in row] for row in table.rows]
        frame = pd.DataFrame(rows, columns=table.head)
        files[f"{name}.csv"] = csv_text(frame)
        files[f"{name}.tex"] = _latex(name, table, frame)
    return files


def _latex(name: str, table: ReportTable, frame: pd.DataFrame) -> str:
    escaped = frame.map(lambda cell: cell.translate(LATEX)).rename(columns=lambda head: head.translate(LATEX))
    caption = " ".join(part for part in (f"{table.title}." if table.title else "", table.caption) if part)
    return escaped.style.hide(axis="index").to_latex(
        column_format="".join("r" if numeric else "l" for numeric in table.numeric),
        hrules=True,
        caption=caption.translate(LATEX) or None,
        label=f"tab:{name}",
        position="tbp",
    )
