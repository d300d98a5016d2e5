"""`mil view`: slides at their full resolution from a server for this machine, and what a pathologist does with them."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import pytest
import tifffile
from browser import CONTRAST, needs_browser, opened, wait
from cohort_results import shared_results

from mil.errors import MilError
from mil.local_page import ADDRESS, LocalPage, Refused
from mil.report.slide_server import MOST_OPEN, SlidePages, read_square
from mil.report.viewer_data import levels_of, size_at
from mil.results.results import Results
from mil.slides.slide import open_slide
from mil.tables import read_table, write_table
from mil.tissue.masks import read_mask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """The shared results with the attention of a second model, a slide that is gone and another that was replaced."""
    shared = shared_results(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("view") / "results"
    for part in ("bags", "census", "predictions", "sites"):
        shutil.copytree(shared.folder / part, folder / part)
    shutil.copy(shared.folder / "config.json", folder)
    for site in shared.sites:
        attention = folder / "sites" / site / "attention"
        shutil.copytree(attention / "attention_fedavg", attention / "attention_pooled")
    table = read_table(folder / "sites/north/slides.csv")
    table.loc[0, "path"] = "gone.tif"
    table.loc[1, "path"] = table.loc[len(table) - 1, "path"]
    write_table(table, folder / "sites/north/slides.csv")
    return Results.open(folder)


@pytest.fixture(scope="module")
def pages(results):
    made = SlidePages(results)
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(pages):
    page = LocalPage(pages)
    thread = threading.Thread(target=page.serve_forever, args=(0.05,))
    thread.start()
    yield page.address
    page.shutdown()
    thread.join()
    page.server_close()


def script(answer):
    return json.loads(re.search(r"[({].*[})]", answer.body.decode(), re.DOTALL)[0].removeprefix("(").removesuffix(")"))


def usable(results, site="north"):
    table = results.table("sites", site, "slides.csv")
    names = table.loc[table["state"] == "ok", "slide_id"].iloc[3:]  # after the slides that are gone and replaced
    return next(name for name in names if results.files.has_attention(site, results.main, name))


def test_squares_of_every_level_put_together_are_the_slide(pages, results):
    name = usable(results)
    known = script(pages(("slides", name, "slide.js")))
    first, last = known["levels"]
    with open_slide(results.files.slide_path("north", name)) as slide:
        whole = slide.read_region(0, 0, 0, slide.width, slide.height)
    for level in range(first, last + 1):
        width, height = size_at(known["width"], known["height"], last - level)
        made = np.full((height, width, 3), 255, np.uint8)
        for row in range(-(-height // known["square"])):
            for column in range(-(-width // known["square"])):
                body = pages(("slides", name, str(level), f"{column}_{row}.jpg")).body
                part = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                top, left = row * known["square"], column * known["square"]
                made[top : top + part.shape[0], left : left + part.shape[1]] = part
        wanted = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(made.astype(int) - wanted).mean() < 4, level
    corner = known["corners"][0]
    tile = cv2.imdecode(
        np.frombuffer(pages(("slides", name, "tiles", f"{corner[0]}_{corner[1]}.jpg")).body, np.uint8), 1
    )
    assert tile.shape == (256, 256, 3)


def test_a_slide_of_one_level_is_read_in_blocks_and_damage_is_grey(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (1300, 5000, 3), np.uint8)
    tifffile.imwrite(tmp_path / "flat.tif", pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    with open_slide(tmp_path / "flat.tif", 0.25) as slide:
        whole = slide.read_region(0, 0, 0, 5000, 1300)
        square = read_square(slide, 3, (512, 0), (113, 163))
        wanted = cv2.resize(whole[:1296, 4096:], (113, 162), interpolation=cv2.INTER_AREA)
        assert np.abs(square[:162].astype(int) - wanted).max() <= 1
    content = bytearray((tmp_path / "flat.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "flat.tif") as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content[start : start + length] = bytes(length)
    (tmp_path / "hurt.tif").write_bytes(content)
    with open_slide(tmp_path / "hurt.tif", 0.25) as slide:
        assert (read_square(slide, 0, (0, 0), (256, 256)) == 128).all()
        assert np.array_equal(read_square(slide, 0, (512, 0), (512, 512)), whole[:512, 512:1024])


def test_levels_are_those_of_deep_zoom():
    assert levels_of(100_000, 80_000) == [8, 17]
    assert levels_of(1, 1) == [0, 0]
    assert size_at(100_001, 3, 17) == (1, 1)


HOSTILE = [
    ("..", "..", "etc", "passwd"), ("slides", "..", "slide.js"), ("/etc/passwd",), ("slides", "/etc/passwd", "slide.js"), ("",),
    ("slides", "nobody", "slide.js"), ("viewer.py",), ("slides.js", "x"), ("index.html\0",), ("slides",),
]  # fmt: skip
HOSTILE_PARTS = [
    ("99", "0_0.jpg"), ("-1", "0_0.jpg"), ("1e3", "0_0.jpg"), ("10", "999_0.jpg"), ("10", "0_-1.jpg"), ("10", "0_0.png"), ("10", "..", "x"),
    ("10", "../0_0.jpg"), ("10", "٣_0.jpg"), ("10", "9999999999999999_0.jpg"), ("10", "00_0.jpg"), ("7", "0_0.jpg"), ("tiles", "x_y.jpg"),
    ("tiles", "99999_0.jpg"), ("slide.js", ""), (), ("thumb.jpg\0",),
]  # fmt: skip


@pytest.mark.parametrize("parts", HOSTILE + [("slides", None, *rest) for rest in HOSTILE_PARTS])
def test_hostile_addresses_are_refused(pages, results, parts):
    with pytest.raises(Refused) as refused:
        pages(tuple(usable(results) if part is None else part for part in parts))
    assert refused.value.status in {400, 404}


def test_few_slides_stay_open(pages, results):
    there = [row for row in results.census().itertuples() if row.state == "ok"][3 : 3 + MOST_OPEN + 3]
    for row in there:
        pages(("slides", row.slide_id, "slide.js"))
    assert len(pages._open) <= MOST_OPEN


@pytest.mark.parametrize(("number", "reason"), [(0, "not on this machine"), (1, "bytes changed")])
def test_a_slide_that_is_gone_or_replaced_is_said(pages, results, number, reason):
    name = results.table("sites", "north", "slides.csv")["slide_id"].iloc[number]
    assert reason in script(pages(("slides", name, "slide.js")))["absent"]
    with pytest.raises(Refused, match=reason):
        pages(("slides", name, "9", "0_0.jpg"))


def test_results_without_slides_are_refused(results, tmp_path):
    shutil.copytree(results.folder / "census", tmp_path / "census")
    for path in tmp_path.glob("census/*.csv"):
        write_table(read_table(path).assign(state="unreadable"), path)
    with pytest.raises(MilError, match="no slide"):
        SlidePages(Results(tmp_path, results.config))


def test_the_command_prints_an_address_and_ends_at_ctrl_c(results):
    command = [sys.executable, "-m", "mil.cli", "view", str(results.folder), "--port", "0"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        line = process.stdout.readline()
        port, token = re.search(rf"http://{ADDRESS}:(\d+)/([^/]+)/index.html", line).groups()
        connection = http.client.HTTPConnection(ADDRESS, int(port), timeout=10)
        connection.request("GET", f"/{token}/slides.js")
        assert b"window.VIEWER" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_folder_without_results_is_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mil.cli", "view", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "name a cohort's results folder" in done.stderr


READY = "viewer.world.getItemCount() > 0 && document.querySelector('#facts').textContent.includes('tiles')"


@needs_browser
def test_annotations_are_kept_and_exported_in_pixels_of_the_slide(address, results, tmp_path):
    name = usable(results)
    before = sorted((path, path.stat().st_mtime_ns) for path in results.folder.rglob("*"))
    with opened(f"{address}#slide={name}", 1280, 800) as tab:
        wait(tab, READY)
        box = tab.locator("#stage").bounding_box()

        def place(x, y):  # of a level-0 pixel on the screen
            point = f"viewer.viewport.pixelFromPoint(new OpenSeadragon.Point({x} / 960, {y} / 960), true)"
            return [tab.evaluate(f"{point}.{axis}") + box[axis] for axis in "xy"]

        tab.keyboard.press("r")
        tab.mouse.move(*place(100, 80))
        tab.mouse.down()
        tab.mouse.move(*place(300, 200), steps=3)
        tab.mouse.up()
        tab.keyboard.type("Tumor")
        tab.locator("#annotation-text").fill('<b>"dense"</b>')
        tab.locator("#polygon").click()
        for corner in ((400, 300), (500, 300), (900, 690), (460, 400)):
            tab.mouse.click(*place(*corner))
            tab.wait_for_timeout(350)  # slower than a double click
        tab.keyboard.press("Backspace")
        tab.keyboard.press("Enter")
        tab.locator("#stage .openseadragon-canvas").first.focus()
        tab.keyboard.press("m")
        tab.mouse.click(*place(600, 500))
        tab.reload()
        wait(tab, READY)
        wait(tab, "document.querySelectorAll('#annotations li').length === 3")
        with tab.expect_download() as download:
            tab.locator("#export").click()
        assert download.value.suggested_filename == f"{name}.geojson"
        download.value.save_as(tmp_path / "made.geojson")
        tab.locator("#import").set_input_files(tmp_path / "made.geojson")
        wait(tab, "document.querySelectorAll('#annotations li').length === 6")
        (tmp_path / "bad.geojson").write_text('{"features": [{"geometry": {"type": "LineString"}}]}')
        tab.locator("#import").set_input_files(tmp_path / "bad.geojson")
        wait(tab, "document.querySelector('#kept').textContent.includes('feature 1 is LineString')")
        tab.locator("#slides button").last.click()
        wait(tab, "document.querySelectorAll('#annotations li').length === 0")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in results.folder.rglob("*"))
    made = json.loads((tmp_path / "made.geojson").read_text())
    assert made["type"] == "FeatureCollection"
    rectangle, polygon, point = made["features"]
    assert len({feature["id"] for feature in made["features"]}) == 3
    assert {feature["properties"]["objectType"] for feature in made["features"]} == {"annotation"}
    assert rectangle["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
    assert rectangle["properties"]["name"] == '<b>"dense"</b>'
    ring = np.array(rectangle["geometry"]["coordinates"][0])
    assert np.array_equal(ring[0], ring[-1])
    assert np.abs(ring[:4] - [[100, 80], [300, 80], [300, 200], [100, 200]]).max() < 2
    ring = np.array(polygon["geometry"]["coordinates"][0])
    assert np.abs(ring - [[400, 300], [500, 300], [900, 690], [400, 300]]).max() < 2
    (tmp_path / "polygons.geojson").write_text(json.dumps({**made, "features": [rectangle, polygon]}))
    mask = read_mask(tmp_path / "polygons.geojson", (960, 704), (960, 704))  # which also reads what QuPath exports
    assert mask[81:199, 101:299].mean() > 0.97
    assert mask.mean() < 0.15
    assert point["geometry"]["type"] == "Point"
    assert np.abs(np.array(point["geometry"]["coordinates"]) - [600, 500]).max() < 2


@needs_browser
def test_two_models_stand_side_by_side_and_move_together(address, results):
    with opened(f"{address}#slide={usable(results)}", 1280, 800) as tab:
        wait(tab, READY)
        tab.keyboard.press("c")
        tab.keyboard.press("b")
        wait(tab, "document.querySelectorAll('.stage .marks').length === 2")
        assert tab.locator("#beside").evaluate("(one) => one.selectedOptions[0].text") == (
            "Pooled, EfficientNet, gated attention"
        )
        captions = tab.locator(".caption").all_inner_texts()
        assert [text.split(",")[0] for text in captions] == ["FedAvg", "Pooled"]
        tab.keyboard.press("n")
        assert "Pooled" in tab.locator("#tile-facts").inner_text()
        tab.wait_for_timeout(1000)
        drawn = tab.evaluate(
            "[...document.querySelectorAll('.marks')].map((marks) => { const copy = document.createElement('canvas'); copy.width = marks.width;"
            " copy.height = marks.height; copy.getContext('2d').drawImage(marks, 0, 0); return copy.toDataURL(); })"
        )
        assert len(drawn[0]) > 3000
        assert drawn[0] == drawn[1]  # the same attention at the same place
        tab.keyboard.press("b")
        wait(tab, "document.querySelectorAll('.stage .marks').length === 1")


@needs_browser
def test_a_slide_that_is_not_there_is_said_in_the_page(address, results):
    name = results.table("sites", "north", "slides.csv")["slide_id"].iloc[0]
    with opened(f"{address}#slide={name}", 1280, 800) as tab:
        wait(tab, "!document.querySelector('#absent').hidden")
        assert "not on this machine" in tab.locator("#absent").inner_text()
        tab.keyboard.press("n")
        tab.locator("#slides button").last.click()
        wait(tab, READY)
        assert tab.locator("#absent").is_hidden()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_viewer_can_be_read_and_used_by_keyboard(address, results, scheme):
    """Contrast, a label for every control, headings without a gap, focus that shows, every control reached by Tab."""
    with opened(f"{address}#slide={usable(results)}", 1280, 800) as tab:
        tab.emulate_media(color_scheme=scheme)
        wait(tab, READY)
        tab.keyboard.press("n")
        tab.locator("#this-tile").click()
        assert tab.evaluate(CONTRAST) == []
        named = "(one) => one.labels?.length || one.textContent.trim() || one.getAttribute('aria-label')"
        controls = tab.locator("input:visible, select:visible, textarea:visible, button:visible")
        assert all(controls.nth(n).evaluate(named) for n in range(controls.count()))
        levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((head) => Number(head.tagName[1]))")
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id).filter(Boolean)")
        assert len(ids) == len(set(ids))
        wanted = set(tab.evaluate("[...document.querySelectorAll('aside [id], header button')].filter((one) => one.matches('input, select, textarea, button') && one.offsetParent).map((one) => one.id)"))  # fmt: skip
        tab.locator("#help").focus()
        reached, rings = {"help"}, []
        for _ in range(200):
            tab.keyboard.press("Tab")
            here = tab.evaluate("document.activeElement.id")
            reached.add(here)
            if here in wanted:
                rings.append(tab.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
            if wanted <= reached:
                break
        assert wanted <= reached
        assert set(rings) <= {"solid", "auto"}
        tab.locator("#help").click()
        assert tab.evaluate("document.querySelector('#keys').open")
        assert tab.evaluate(CONTRAST) == []
        tab.keyboard.press("Escape")
        assert not tab.evaluate("document.querySelector('#keys').open")
