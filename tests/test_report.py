"""The report: one file, nothing from outside, every figure in it, and tables that sort in a real browser."""

import re
import shutil

import pytest
from cohort_results import shared_results

from mil.figures import FIGURES, Results, draw_figure
from mil.report import build
from mil.report.story import STORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    small_results = shared_results(tmp_path_factory.getbasetemp())
    spec = small_results.config.figures.model_copy(update={"formats": ("svg", "png"), "dpi": 80})
    for name in FIGURES:
        for site in small_results.sites if FIGURES[name].per_site else [None]:
            draw_figure(name, small_results, spec, site)
    return small_results


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(build(results), encoding="utf-8")
    return path


def test_every_figure_has_its_place_in_the_story():
    told = [name for chapter in STORY for name in chapter.figures]
    assert sorted(told) == sorted(FIGURES)


def test_the_page_asks_nothing_of_a_network(page):
    text = page.read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*|url\((?!"data:)[^)]*|@import[^;]*""", text)
    assert outside == []
    assert page.stat().st_size < 30e6


def test_every_excluded_slide_stands_in_the_page_with_its_reason(page, results):
    text = page.read_text(encoding="utf-8")
    census = results.census()
    lost = census[census["state"] != "ok"]
    assert len(lost) >= 3
    for row in lost.itertuples():
        assert row.slide_id in text


def test_a_figure_that_is_left_out_is_listed_with_its_reason(results, tmp_path):
    for part in ("bags", "census", "predictions", "metrics", "figures"):
        shutil.copytree(results.folder / part, tmp_path / part)
    poor = Results(tmp_path, results.config)
    draw_figure("learning_curves", poor, results.config.figures)
    text = build(poor)
    assert 'id="left-out"' in text
    assert "no run of this family has a table of rounds" in text


def test_a_report_of_nothing_is_still_a_page(results, tmp_path):
    text = build(Results(tmp_path, results.config))
    assert "Left out" in text
    assert "Methods" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_opens_and_its_tables_sort(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, height in ((1280, 900), (390, 844)):
            tab = browser.new_page(viewport={"width": width, "height": height})
            said, asked = [], []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
            assert said == []
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        table = tab.locator("table.sortable").nth(1)
        column = table.locator("thead th", has_text="AUROC")
        place = column.evaluate("(head) => head.cellIndex")
        values = f"(table) => [...table.tBodies[0].rows].map((row) => Number(row.cells[{place}].dataset.value))"
        column.locator("button").press("Enter")
        up = table.evaluate(values)
        assert up == sorted(up)
        column.locator("button").click()
        assert table.evaluate(values) == sorted(up, reverse=True)
        assert column.get_attribute("aria-sort") == "descending"
        browser.close()
