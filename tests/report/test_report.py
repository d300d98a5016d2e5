"""The report: one file, nothing from outside, every figure in it, and tables that sort in a real browser."""

import csv
import io
import json
import re
from itertools import pairwise

import cv2
import numpy as np
import pytest
from browser import CONTRAST, needs_browser, opened
from copies import copied
from typer.testing import CliRunner

from mil.cli import app
from mil.figures import FIGURES, draw_figure
from mil.files import write_text
from mil.report.build import build
from mil.report.pictures import PX_A_MM, picture_of
from mil.report.slide_viewer import write_viewer
from mil.results.results import Results

pytestmark = pytest.mark.slow

# how many pixels of the overlay are painted; read from a copy, since reading a canvas itself makes Chromium remark on it
PAINTED = """() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 900, height: 700}).getContext("2d", {willReadFrequently: true});
  pen.drawImage(document.querySelector(".marks"), 0, 0);
  return pen.getImageData(0, 0, 900, 700).data.filter((value, place) => place % 4 === 3 && value > 0).length;
}"""


def test_the_page_asks_nothing_of_a_network(page):
    text = page.read_text(encoding="utf-8")
    outside = re.findall(
        r"""(?:src|href)=["'](?!data:|#|viewer/index.html|checklist.html|model_cards/|\.\./figures/)[^"']*|url\((?!"data:)[^)]*|@import[^;]*""",
        text,
    )
    assert outside == []
    assert page.stat().st_size < 30e6


def test_the_checklists_point_at_what_the_page_has(page):
    """Each reference is an anchor of the page, and each item is in the report or says what is missing."""
    anchors = set(re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8")))
    checklist = page.with_name("checklist.html").read_text(encoding="utf-8")
    assert set(re.findall(r'href="index.html#([^"]+)"', checklist)) <= anchors
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>.*?<td>(.*?)</td><td>(.*?)</td></tr>", checklist)
    assert len(rows) == 52 + 48
    assert [number for number, here, missing in rows if not here and not missing] == []


def test_tables_for_a_manuscript_hold_the_report_s_cells(report):
    files = report.tables
    assert {"performance.csv", "performance.tex", "cohort_table.tex"} <= set(files)
    for name in (name for name in files if name.endswith(".csv")):
        rows = list(csv.reader(io.StringIO(files[name])))
        latex = files[name.replace(".csv", ".tex")]
        body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
        assert len(body) == len(rows) - 1
        assert {len(re.split(r"(?<!\\)&", line)) for line in [latex.split(r"\toprule")[1].splitlines()[1], *body]} == {
            len(rows[0])
        }
        assert not set(latex) & set("−Δ²≥")


def test_every_excluded_slide_stands_in_the_page_with_its_reason(page, results):
    text = page.read_text(encoding="utf-8")
    census = results.census()
    lost = census[census["state"] != "ok"]
    assert len(lost) >= 3
    for row in lost.itertuples():
        assert row.slide_id in text


def test_a_figure_that_is_left_out_is_listed_with_its_reason(results, tmp_path):
    for part in ("bags", "census", "predictions", "metrics", "figures"):
        copied(results.folder / part, tmp_path / part)
    poor = Results(tmp_path, results.config)
    draw_figure("learning_curves", poor, results.config.figures)
    text = build(poor).pages["index.html"]
    assert 'id="left-out"' in text
    assert "no run of this family has a table of rounds" in text


def test_a_report_of_nothing_is_still_a_page(results, tmp_path):
    report = build(Results(tmp_path, results.config))
    text = report.pages["index.html"]
    assert "Left out" in text
    assert "Methods" in text
    assert "Not here: bags/response.csv is not among the results." in report.pages["model_cards/attention_fedavg.md"]
    assert "not drawn; run `mil plot patient_flow`" in report.pages["checklist.html"]
    assert report.tables == {}


def test_commands_by_hand_take_the_settings_of_the_run(results, tmp_path):
    for part in ("bags", "census"):
        copied(results.folder / part, tmp_path / part)
    config = json.loads((results.folder / "config.json").read_text())
    config["figures"]["formats"] = ["svg"]
    config["report"]["title"] = "The title of this run"
    (tmp_path / "config.json").write_text(json.dumps(config))
    earlier = [tmp_path / name for name in ("tables/localisation.csv", "report/model_cards/gone.md")]
    for path in earlier:
        write_text(path, "of an earlier run")
    for arguments in (["plot", "patient_flow", "--results", str(tmp_path)], ["report", str(tmp_path)]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert not any(path.exists() for path in earlier)
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".csv", ".json"}
    assert "<title>The title of this run</title>" in (tmp_path / "report/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
@needs_browser
def test_the_page_opens_at_both_widths(page, size):
    with opened(page.as_uri(), *size) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert tab.locator("figure").count() > 25


@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (390, 844)])
@needs_browser
def test_figures_are_shown_whole_and_can_be_read(page, size):
    """On a phone a figure fits, and a press makes it large: letters of 6 pt in print are then at least 7 pt (9.3 px) high on the screen."""
    with opened(page.as_uri(), *size) as tab:
        frame, button = tab.locator(".first .frame"), tab.locator(".first .enlarge")
        assert tab.evaluate(
            "[...document.querySelectorAll('.frame')].every((box) => box.scrollWidth <= box.clientWidth)"
        )
        assert button.is_visible() == (size[0] < 800)
        if button.is_visible():
            frame.click()
            assert frame.evaluate("(box) => box.scrollWidth > box.clientWidth")
            assert frame.evaluate("(box) => box.classList.contains('cut')")  # fades where it goes on
            frame.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
            tab.wait_for_function("!document.querySelector('.first .frame').classList.contains('cut')")
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        width, mm = tab.evaluate(
            "((image) => [image.width, parseFloat(image.parentElement.style.width)])(document.querySelector('.first img'))"
        )
        assert 6 / 72 * 25.4 * PX_A_MM * width / mm >= 7 / 72 * 96
        if button.is_visible():
            button.press("Enter")
            assert frame.evaluate("(box) => box.scrollWidth <= box.clientWidth")
        assert tab.evaluate(
            "[...document.querySelectorAll('.scroll')].every((box) => getComputedStyle(box).backgroundAttachment.includes('local'))"
        )


@needs_browser
def test_hyphens_of_the_text_are_not_as_wide_as_digits(page):
    """Digits of equal width make hyphens as wide: they are for cells of numbers alone."""
    measured = """() => ["-", "0"].map((text) => {
      const span = Object.assign(document.createElement("span"), {textContent: text.repeat(20)});
      document.querySelector("h1").append(span);
      return span.getBoundingClientRect().width;
    })"""
    with opened(page.as_uri(), 1440, 900) as tab:
        hyphen, digit = tab.evaluate(measured)
        assert hyphen < 0.85 * digit
        assert (
            tab.evaluate("getComputedStyle(document.querySelector('td.number')).fontVariantNumeric") == "tabular-nums"
        )


@needs_browser
def test_tables_sort_by_mouse_and_keyboard(page):
    with opened(page.as_uri(), 1280, 900) as tab:
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


def test_pictures_of_many_sites_are_links_beyond_the_first(results, monkeypatch):
    name = next(name for name in FIGURES if FIGURES[name].per_site and len(picture_of(results, name).parts) > 1)
    sites = [part.label for part in picture_of(results, name).parts]
    monkeypatch.setattr("mil.report.pictures.MOST_SITES", 1)
    picture = picture_of(results, name)
    assert [part.label for part in picture.parts] == sites[:1]
    assert [site for site, _ in picture.files] == sites
    assert picture.caption.endswith(f"Shown are 1 of {len(sites)} sites; the files of all sites are linked below.")


@needs_browser
def test_the_viewer_zooms_toggles_and_opens_tiles_from_the_montage(page):
    with opened(page.as_uri(), 1280, 900) as tab:
        tab.locator("a.spot").first.click()
        tab.wait_for_function(
            "window.viewer && viewer.world.getItemCount() && document.querySelector('#tile-facts dd')"
        )
        assert "slide=" in tab.evaluate("location.hash")
        tab.wait_for_function("viewer.viewport.getZoom(true) > 2")  # it goes to the tile
        drawn = PAINTED
        with_overlay = tab.evaluate(drawn)
        tab.keyboard.press("o")
        assert tab.evaluate("document.body.dataset.overlay") == "false"
        assert tab.evaluate(drawn) < with_overlay / 2
        tab.keyboard.press("o")
        tab.locator("#threshold").evaluate("(input) => { input.value = 1; input.dispatchEvent(new Event('input')); }")
        assert tab.evaluate(drawn) < with_overlay
        before = tab.locator("#tile-facts").inner_text()
        tab.keyboard.press("n")
        assert tab.locator("#tile-facts").inner_text() != before
        tab.keyboard.press("0")
        tab.wait_for_function("Math.abs(viewer.viewport.getZoom(true) - viewer.viewport.getHomeZoom()) < 0.01")
        tab.locator("#stage .openseadragon-canvas").first.focus()
        tab.keyboard.press("+")
        tab.wait_for_function("viewer.viewport.getZoom(true) > 1.05 * viewer.viewport.getHomeZoom()")
        wide = tab.locator("#bar").bounding_box()["width"]
        length = tab.locator("#length").inner_text()
        tab.locator("#closer").click()
        tab.wait_for_function(f"viewer.viewport.getZoom(true) > 1.4 * {tab.evaluate('viewer.viewport.getHomeZoom()')}")
        assert (tab.locator("#length").inner_text(), tab.locator("#bar").bounding_box()["width"]) != (length, wide)
        tab.locator("#slides button").nth(1).click()
        tab.wait_for_function("document.querySelectorAll('#slides button')[1].getAttribute('aria-current') === 'true'")
        tab.wait_for_timeout(300)


@needs_browser
def test_the_viewer_fits_a_phone(page):
    with opened((page.parent / "viewer/index.html").as_uri(), 390, 844) as tab:
        tab.wait_for_function("viewer.world.getItemCount() > 0")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.wait_for_timeout(300)


def test_the_viewers_pyramid_is_the_slide(page, results):
    folder = page.parent / "viewer"
    slides = json.loads((folder / "slides.js").read_text().removeprefix("window.VIEWER = ").rstrip(";\n"))["slides"]
    assert [slide["site"] for slide in slides] == ["north", "south", "east", "west"]
    place = folder / slides[0]["at"]
    one = json.loads((place / "slide.js").read_text().removeprefix("VIEWER.add(").rstrip(");\n"))
    assert one["id"] == slides[0]["id"]
    width, height = one["pixels"]
    last = place / str(one["levels"][1])
    assert len(list(last.glob("*.jpg"))) == -(-width // one["square"]) * -(-height // one["square"])
    smallest = cv2.imread(str(place / str(one["levels"][0]) / "0_0.jpg"))
    assert max(smallest.shape) <= 256
    corners, attention = results.files.attention("north", results.main, one["id"])
    assert one["corners"] == corners.tolist()
    assert np.argsort(one["attention"][0], kind="stable")[-1] == attention.argmax()
    assert len(list((place / "tiles").glob("*.jpg"))) == len(one["full"])
    assert (folder / "openseadragon.LICENSE.txt").read_text().startswith("Copyright (C) 2009 CodePlex Foundation")


def test_a_cohort_whose_slides_are_gone_has_no_viewer(results, tmp_path):
    poor = Results(tmp_path, results.config)
    assert write_viewer(poor, tmp_path / "viewer") == []
    assert not (tmp_path / "viewer").exists()


@needs_browser
def test_the_page_is_fit_for_keyboard_print_and_reduced_motion(page):
    with opened(page.as_uri(), 1366, 768) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "To the text"
        assert tab.evaluate("[...document.images].every((image) => image.alt.length > 20)")
        assert tab.evaluate("[...document.querySelectorAll('thead th')].every((head) => head.scope === 'col')")
        assert tab.evaluate("[...document.querySelectorAll('tbody tr')].every((row) => row.cells[0].scope === 'row')")
        ids = tab.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.hash.slice(1))")
        assert [one for one in set(ids) if not tab.evaluate("(id) => Boolean(document.getElementById(id))", one)] == []
        assert tab.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
        tab.emulate_media(reduced_motion="reduce")
        assert tab.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
        assert tab.evaluate(
            "[...document.querySelectorAll('.scroll')].every((box) => box.scrollHeight <= box.clientHeight + 2)"
        )
        for width, tables in ((680, "figure:not(.wide) .scroll"), (1030, ".wide .scroll")):  # A4 less its margins
            tab.set_viewport_size({"width": width, "height": 900})
            cut = "(chosen) => [...document.querySelectorAll(chosen)].filter((box) => box.scrollWidth > box.clientWidth + 1).length"
            assert tab.evaluate(cut, tables) == 0


@needs_browser
def test_the_contents_follow_the_page_and_dark_mode_has_contrast(page):
    with opened(page.as_uri(), 1366, 768) as tab:
        tab.evaluate("window.scrollTo(0, document.getElementById('performance').offsetTop + 300)")
        tab.wait_for_function("document.querySelector('.contents [aria-current][href=\"#performance\"]')")
        tab.emulate_media(color_scheme="dark")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert tab.evaluate(CONTRAST) == []


@needs_browser
def test_every_control_has_a_name_and_shows_its_focus(page):
    """Headings without a gap, ids once, a name for every control, and a ring around what the keyboard reaches."""
    for file in (page, page.with_name("checklist.html")):
        with opened(file.as_uri(), 1366, 768) as tab:
            levels = tab.evaluate(
                "[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))"
            )
            assert levels[0] == 1
            assert levels.count(1) == 1
            assert all(after <= before + 1 for before, after in pairwise(levels))
            ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
            assert len(ids) == len(set(ids))
            nameless = "[...document.querySelectorAll('a[href], button, summary, [tabindex]')].filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.title || one.querySelector('img[alt]'))).length"
            assert tab.evaluate(nameless) == 0
            assert tab.evaluate("document.documentElement.lang") == "en"
            for _ in range(40):
                tab.keyboard.press("Tab")
                ring = "(({outlineStyle, outlineWidth}) => outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1)(getComputedStyle(document.activeElement))"
                assert tab.evaluate(ring), tab.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_every_figure_links_to_its_files(page, results):
    addresses = re.findall(r'href="\.\./figures/([^"]+)"', page.read_text(encoding="utf-8"))
    assert {address.rsplit(".", 1)[1] for address in addresses} == {"pdf", "svg", "png", "csv"}
    assert [address for address in addresses if not (results.folder / "figures" / address).is_file()] == []


def test_the_first_screen_says_the_finding_its_caveat_and_shows_a_figure(page):
    first = re.search(r'<div class="first">.*?</header>', page.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "AUROC" in first
    assert "Few patients" in first
    assert "<img" in first


@needs_browser
def test_words_stand_out_from_their_ground(page):
    """WCAG 2's contrast of 4.5 for every text of the page, 3 for large text."""
    with opened(page.as_uri(), 1366, 768) as tab:
        faint = tab.evaluate(CONTRAST)
        assert faint == []
