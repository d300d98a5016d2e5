"""Frames a second and CPU per frame of the slide viewer while a slide with many tiles is moved.

    python benchmarks/viewer_frames.py RESULTS [TILES]

It serves RESULTS as `mil view` does, gives the first slide a grid of about TILES tiles (20,000) with drawn attention, and moves
it for three seconds in headless Chromium without a GPU. CPU: of the page's main thread; 16.7 ms is the budget of 60 frames.
"""

import json
import random
import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from mil.local_page import LocalPage
from mil.report.slide_server import SlidePages
from mil.results.results import Results

MOVED = """() => new Promise((done) => {
  let n = 0;
  const { viewport } = viewer;
  const start = performance.now();
  const step = (now) => {
    n += 1;
    viewport.panBy(new OpenSeadragon.Point(Math.cos(n / 20), Math.sin(n / 20)).times(0.008 / viewport.getZoom()), true);
    if (now - start < 3000) requestAnimationFrame(step); else done([n, now - start]);
  };
  requestAnimationFrame(step);
})"""
READY = "viewer.world.getItemCount() > 0 && /tiles/.test(document.querySelector('#facts').textContent)"


def with_tiles(script: str, count: int) -> str:
    """A slide's script with a grid of about `count` tiles instead of its own."""
    known = json.loads(script[script.index("(") + 1 : script.rindex(")")])
    side = max(round((known["width"] * known["height"] / count) ** 0.5), 1)
    stream = random.Random(0)
    known["corners"] = [
        [x, y] for y in range(0, known["height"] - side, side) for x in range(0, known["width"] - side, side)
    ]
    values = [round(stream.lognormvariate(0, 1), 3) for _ in known["corners"]]
    known.update(side=side, stride=side, truth=None, attention=[part and values for part in known["attention"]])
    return f"VIEWER.add({json.dumps(known)});"


def main(folder: Path, count: int) -> None:
    page = LocalPage(SlidePages(Results.open(folder)))
    threading.Thread(target=page.serve_forever, daemon=True).start()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.route(
            "**/slide.js",
            lambda route: route.fulfill(body=with_tiles(route.fetch().text(), count), content_type="text/javascript"),
        )
        tab.goto(page.address)
        while not tab.evaluate(READY):
            tab.wait_for_timeout(50)
        print(tab.evaluate("document.querySelector('#facts').textContent"))
        tab.evaluate("() => viewer.viewport.zoomBy(3)")
        tab.wait_for_timeout(1500)
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        for shown, key in (("colour", None), ("colour and contours", "c"), ("the same, two models side by side", "b")):
            if key:
                tab.keyboard.press(key)
                tab.wait_for_timeout(1500)
            before = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            frames, milliseconds = tab.evaluate(MOVED)
            after = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            cpu = 1000 * (after["TaskDuration"] - before["TaskDuration"]) / frames
            print(f"{shown}: {1000 * frames / milliseconds:.0f} frames a second, {cpu:.1f} ms of CPU per frame")
        browser.close()
    page.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)
