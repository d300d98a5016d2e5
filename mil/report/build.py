"""Results -> the report: an HTML file with every image, font and script inside, checklists, model cards, tables."""

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from mil.config import ReportSpec
from mil.figures import FIGURES
from mil.paper import PROTOCOL
from mil.report import costs as _costs  # noqa: F401  enters its table
from mil.report.cells import ReportTable
from mil.report.claims import claims, headline, leak_warning
from mil.report.guidelines import guidelines
from mil.report.limits import limits
from mil.report.methods import methods
from mil.report.model_card import model_card
from mil.report.pictures import Picture, picture_of
from mil.report.story import STORY, Chapter
from mil.report.table_files import table_files
from mil.report.tables import tables_of
from mil.results.results import Results
from mil.version import __version__

FIRST_FIGURES = ("auroc_by_strategy", "roc_by_site", "predicted_vs_observed", "kaplan_meier")
"""The first of them that this cohort has stands on the first screen."""
HERE = Path(__file__).parent
SCRIPT = HERE / "page.js"
FONTS = Path(__file__).parents[1] / "figures" / "fonts"


@dataclass(frozen=True)
class Section:
    """One chapter with what this cohort has for it."""

    chapter: Chapter
    pictures: list[Picture]
    tables: list[ReportTable]


@dataclass(frozen=True)
class Report:
    """Files of a report, text by name: `pages` stand beside each other, `tables` in a folder of their own."""

    pages: dict[str, str]
    tables: dict[str, str]


def build(
    results: Results,
    spec: ReportSpec | None = None,
    in_viewer: Collection[str] = (),
    figures_at: str = "../figures",
) -> Report:
    """The report of `results`: `index.html`, `checklist.html` and a model card per experiment; tables as CSV and LaTeX.

    What the cohort lacks is left out and listed with the reason at the end. `in_viewer` are the slides that `write_viewer`
    put beside it; the page then links to them. `figures_at` is the address of the results' folder `figures`, as seen from
    the report: each figure links to its files there.
    """
    spec = spec or results.config.report
    drawn = {name: picture_of(results, name, in_viewer, figures_at) for chapter in STORY for name in chapter.figures}
    tables = {name: table for chapter in STORY for name in chapter.tables if (table := tables_of(results, name))}
    sections = _sections(drawn, tables)
    paragraphs = methods(results)
    warning, said, limited = leak_warning(results), claims(results), limits(results)
    environment = page_environment(spec.title)
    numbers = {picture.name: picture.number for section in sections for picture in section.pictures}
    index = environment.get_template("page.html.j2").render(
        warning=warning,
        headline=headline(results),
        finding=said[bool(warning)],
        caveat=limited[bool(warning)],
        first_figure=next((drawn[name] for name in FIRST_FIGURES if drawn[name].parts), None),
        claims=said[bool(warning) + 1 :],
        sections=sections,
        methods=paragraphs,
        limits=limited,
        left_out=[picture for picture in drawn.values() if picture.left_out],
        paper=[(number, content, _of_number(number, numbers)) for number, content in PROTOCOL.items()],
        in_viewer=len(in_viewer),
        cards={f"model_cards/{name}.md": name for name in results.experiments},
        settings=results.config.model_dump_json(indent=2),
        spec=spec,
        cohort=results.config.cohort,
        script=SCRIPT.read_text(encoding="utf-8"),
    )
    checked = guidelines(drawn, tables, {paragraph.title for paragraph in paragraphs})
    cards = {f"model_cards/{name}.md": model_card(results, name) for name in results.experiments}
    as_figures = {name: picture.table for name, picture in drawn.items() if picture.table is not None}
    return Report(
        {
            "index.html": index,
            "checklist.html": environment.get_template("checklist.html.j2").render(
                guidelines=checked, cohort=results.config.cohort
            ),
            **cards,
        },
        table_files(as_figures | tables),
    )


def _sections(drawn: Mapping[str, Picture], tables: Mapping[str, ReportTable]) -> list[Section]:
    """The chapters for which this cohort has a figure or a table, with their numbers."""
    sections = [
        Section(
            chapter,
            [drawn[name] for name in chapter.figures if not drawn[name].left_out],
            [tables[name] for name in chapter.tables if name in tables],
        )
        for chapter in STORY
    ]
    sections = [section for section in sections if section.pictures or section.tables]
    _number(sections)
    return sections


def page_environment(title: str) -> jinja2.Environment:
    """The templates, with what every page needs: its title, style, fonts and the version."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.globals = {
        "title": title,
        "version": __version__,
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "fonts": {
            weight: base64.b64encode((FONTS / f"inter-{cut}.ttf").read_bytes()).decode()
            for weight, cut in ((400, "regular"), (700, "semibold"))
        },
    }
    return environment


def _of_number(number: str, numbers: Mapping[str, int]) -> list[tuple[str, str, int | None]]:
    """Title, name and place in the report of the figures with a number of the protocol."""
    names = sorted(name for name in FIGURES if FIGURES[name].number == number)
    return [(FIGURES[name].title, name, numbers.get(name)) for name in names]


def _number(sections: list[Section]) -> None:
    """Figures and tables get numbers in the order in which they stand."""
    figures = (picture for section in sections for picture in section.pictures)
    for number, picture in enumerate(figures, 1):
        picture.number = number
    for number, table in enumerate((table for section in sections for table in section.tables), 1):
        table.number = number
