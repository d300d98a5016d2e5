"""Items of TRIPOD+AI and STARD-AI -> where the report has each, or what is missing and why."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mil.figures import FIGURES
from mil.report.cells import ReportTable
from mil.report.pictures import Picture

ITEMS = Path(__file__).with_name("guidelines.toml")
PARTS = {"findings": ("Findings", "finding"), "limits": ("Limits", "limits"), "settings": ("Settings", "settings")}
"""Label and anchor of parts of the page, by name in `ITEMS`."""
IN_REPORT, IN_PART, MISSING = "in the report", "in part", "missing"


@dataclass(frozen=True)
class Reference:
    """A part of the report: its name, and its anchor in the page."""

    label: str
    anchor: str


@dataclass(frozen=True)
class Item:
    """An item of a guideline. `lacking`: what the authors have to add, or what this run left out and why."""

    number: str
    topic: str
    references: list[Reference]
    lacking: list[str]

    @property
    def state(self) -> str:
        """`IN_REPORT`, `IN_PART` or `MISSING`."""
        if not self.references:
            return MISSING
        return IN_PART if self.lacking else IN_REPORT


@dataclass(frozen=True)
class Guideline:
    """A guideline, its source, and its items in their order."""

    name: str
    source: str
    items: list[Item]

    def count(self, state: str) -> int:
        """Number of items in a state."""
        return sum(item.state == state for item in self.items)


def guidelines(
    pictures: Mapping[str, Picture], tables: Mapping[str, ReportTable], paragraphs: set[str]
) -> list[Guideline]:
    """Each guideline's items against what the page has: figures and tables by name, titles of paragraphs of the methods."""
    read = tomllib.loads(ITEMS.read_text(encoding="utf-8"))
    return [
        Guideline(
            guideline["name"],
            guideline["about"],
            [_item(entry, pictures, tables, paragraphs) for entry in guideline["items"]],
        )
        for guideline in read["guideline"]
    ]


def _item(
    entry: Mapping[str, Any], pictures: Mapping[str, Picture], tables: Mapping[str, ReportTable], paragraphs: set[str]
) -> Item:
    references = [
        Reference(f"Methods, {title}", "methods") for title in entry.get("methods", ()) if title in paragraphs
    ]
    lacking = []
    for name in entry.get("figures", ()):
        picture = pictures.get(name)
        if picture is not None and not picture.left_out:
            references.append(Reference(f"Figure {picture.number}", name))
        else:
            reason = picture.left_out if picture is not None else "not part of this report"
            lacking.append(f"figure “{FIGURES[name].title}”: {reason}")
    for name in entry.get("tables", ()):
        if name in tables:
            references.append(Reference(f"Table {tables[name].number}", f"table-{tables[name].number}"))
        else:
            lacking.append(f"table of {name.replace('_', ' ')}: this run has no rows for it")
    references += [Reference(*PARTS[name]) for name in entry.get("sections", ())]
    return Item(entry["item"], entry["topic"], references, [*lacking, *_of_authors(entry)])


def _of_authors(entry: Mapping[str, Any]) -> Iterator[str]:
    if "authors" in entry:
        yield f"to be written by the authors: {entry['authors']}"
