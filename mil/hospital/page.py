"""A local page, read only, and calls of a command: `mil server watch` and `mil site watch`."""

import json
import os
import subprocess
import threading
import time
from dataclasses import asdict
from http import HTTPStatus
from importlib.resources import files

import jinja2

from mil.errors import MilError
from mil.hospital.watch import Event, Part, Watched, parts_or_fault
from mil.local_page import Answer, LocalPage, Pages, Refused
from mil.progress import Reporter

POLL_S = 2.0
NOTIFY_S = 60.0
REFRESH_S = 10


def pages(watched: Watched) -> Pages:
    """`index.html`, made anew at every request, `live.html`, which reads itself again, and their style; nothing else is there."""

    def answered(parts: tuple[str, ...]) -> Answer:
        if parts in {("index.html",), ("live.html",)}:
            text = render(parts_or_fault(watched), live=parts == ("live.html",))
            return Answer(text.encode(), "text/html; charset=utf-8")
        if parts == ("style.css",):
            return Answer(_shipped("watch.css").encode(), "text/css; charset=utf-8", kept_s=3600)
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such page here.")

    return answered


def render(parts: list[Part], live: bool = False) -> str:
    """The page; whatever a site wrote is escaped. `live`: the browser reads it again every `REFRESH_S` seconds."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    curves = {part.title: _points(list(part.curve)) for part in parts}
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    template = environment.from_string(_shipped("watch.html"))
    return template.render(parts=parts, curves=curves, now=now, every=REFRESH_S, live=live)


def watch(watched: Watched, port: int, notify: list[str], reporter: Reporter) -> None:
    """Serve the page until the process is stopped, and call `notify` for every event."""
    with LocalPage(pages(watched), port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reporter.say(f"read only, for the user of this machine who has this address: {server.address}")
        while True:
            time.sleep(POLL_S)
            if notify:
                call_for(watched, notify, reporter)


def call_for(watched: Watched, words: list[str], reporter: Reporter) -> None:
    """Call the command for every new event; what goes wrong with it is said and stops nothing."""
    try:
        for event in watched.news():
            try:
                call(words, event)
            except (OSError, subprocess.SubprocessError) as error:
                reporter.say(f"notify: {error}")
    except (MilError, OSError, ValueError, KeyError) as error:
        reporter.say(f"notify: {error}")


def call(words: list[str], event: Event) -> None:
    """The command without a shell: the event as JSON on standard input, and as one line in MIL_EVENT."""
    line = "".join(letter if letter.isprintable() else " " for letter in f"{event.kind}: {event.text}")
    environment = {**os.environ, "MIL_EVENT": line}
    subprocess.run(words, input=json.dumps(asdict(event)), text=True, env=environment, timeout=NOTIFY_S, check=True)


def _points(losses: list[float]) -> str:
    """Losses -> points of a line in a field of 600 x 120."""
    low, high = (min(losses), max(losses)) if losses else (0.0, 0.0)
    step = 600 / max(len(losses) - 1, 1)
    scale = 110 / (high - low) if high > low else 0.0
    return " ".join(f"{number * step:.1f},{5 + (high - loss) * scale:.1f}" for number, loss in enumerate(losses))


def _shipped(name: str) -> str:
    return files("mil.hospital").joinpath(name).read_text(encoding="utf-8")
