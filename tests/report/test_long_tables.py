"""A long table of the report: shown in parts, sorted and printed as a whole."""

from browser import needs_browser, opened

from mil.files import write_text
from mil.report.build import SCRIPT, page_environment
from mil.report.cells import Cell, ReportTable


@needs_browser
def test_a_long_table_is_shown_by_fifty_rows_and_sorted_as_a_whole(tmp_path):
    rows = [[Cell(f"site {n}"), Cell(str(n), float(n))] for n in range(120)]
    template = (
        '{% from "table.html.j2" import table %}{{ table(long) }}{{ table(short) }}<script>{{ script | safe }}</script>'
    )
    tables = {"long": ReportTable("", "", ["Site", "Value"], rows), "short": ReportTable("", "", ["A", "B"], rows[:50])}
    text = page_environment("t").from_string(template).render(**tables, script=SCRIPT.read_text(encoding="utf-8"))
    style = SCRIPT.with_suffix(".css").read_text(encoding="utf-8")
    write_text(tmp_path / "page.html", f"<!doctype html><title>t</title><style>{style}</style>{text}")
    shown = "[...document.querySelector('table').tBodies[0].rows].filter((row) => row.getClientRects().length).map((row) => Number(row.cells[1].textContent))"
    with opened((tmp_path / "page.html").as_uri(), 1280, 900) as tab:
        assert tab.locator(".pages").count() == 1
        assert tab.evaluate(shown) == list(range(50))
        for _ in range(2):
            tab.get_by_role("button", name="Next").click()
        assert tab.evaluate(shown) == list(range(100, 120))
        assert tab.locator(".pages span").text_content() == "Rows 101 to 120 of 120"
        assert tab.get_by_role("button", name="Next").is_disabled()
        column = tab.locator("table").first.locator("thead button", has_text="Value")
        column.click()
        column.click()
        assert tab.evaluate(shown) == list(range(119, 69, -1))
        tab.emulate_media(media="print")
        assert tab.evaluate(shown) == list(range(119, -1, -1))
