"""The local page and the calls of a command: read only, for who has the token, whatever a site wrote."""

import json
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import inprocess
import pytest
import torch
from browser import needs_browser, opened, violations
from hospitals import Hospitals, make_hospitals

from mil.errors import CorruptFile
from mil.hospital.keys import PartyKey
from mil.hospital.page import call_for, pages
from mil.hospital.parties import ServerSpec, SiteSpec
from mil.hospital.record import LedgerFile
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.hospital.watch import Watched, events_of, parts_or_fault, silence
from mil.local_page import LocalPage
from mil.progress import quiet

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>\" onload='x' {{7*7}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    torch.set_num_threads(1)
    hospitals = make_hospitals(tmp_path_factory.mktemp("watched"))
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    folder = Path(hospitals.server.workspace) / "runs" / "first"
    inprocess.run(Server(hospitals.protocol, "first", folder), sites)
    other = LedgerFile(folder.parent / "second" / "ledger.jsonl", "server", PartyKey(folder))
    other.add({"event": "started", "run": "second", "rehearsal": None})
    line = {"event": "waiting", "run": "second", "kind": "join", "answered": {}, "reason": f"without A {HOSTILE}"}
    other.add({**line, "missing": {"A": f"refused: {HOSTILE}", "B": "connection lost"}, "alarms": {HOSTILE: HOSTILE}})
    return hospitals


@contextmanager
def served(spec: ServerSpec | SiteSpec) -> Iterator[str]:
    """The page's address, while it is served."""
    with LocalPage(pages(Watched(spec))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def fetched(address: str, method: str = "GET") -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=20) as reply:
            return reply.status, reply.read().decode(), reply.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Security-Policy"]


def test_the_page_is_for_who_has_the_token_and_takes_nothing(finished: Hospitals) -> None:
    with served(finished.server) as address:
        status, text, policy = fetched(address)
        assert (status, "Run first" in text, "Run second" in text) == (200, True, True)
        root, _, token = address.removesuffix("/index.html").rpartition("/")
        for other in (
            root,
            f"{root}/",
            f"{root}/{token}x/index.html",
            f"{root}/{token[:-1]}/index.html",
            f"{root}/index.html",
        ):
            assert fetched(other)[0] == 403, other
        for other in ("", "../ledger.jsonl", "server.yaml", "index.html/", "..%2findex.html"):
            assert fetched(f"{root}/{token}/{other}")[0] == 404, other
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert fetched(address, method)[0] == 405, method
        assert urlsplit(address).hostname == "127.0.0.1"
        assert policy.startswith("default-src 'none'")
        assert re.findall(r'(?:href|src)="([^"]*)"', text) == ["data:,", "style.css", "live.html"]
        assert 'http-equiv="refresh"' not in text  # only on request: a person reads at their own pace
        assert 'http-equiv="refresh"' in fetched(f"{root}/{token}/live.html")[1]
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)" in text  # what a site wrote is text
        assert "{{7*7}}" in text  # nor is it a template


def test_a_site_s_page_says_what_left_and_to_whom(finished: Hospitals) -> None:
    (part,) = Watched(finished.site("A")).view()
    given, refused, results = part.tables
    kinds = {row[1]: row for row in given.rows}
    assert set(kinds) == {"join", "moments", "train", "watch", "finish", "close"} - {"close"}
    assert (
        kinds["train"][2] == 3 + len([line for line in given.rows if line[1] == "train"]) + 2 or kinds["train"][2] >= 4
    )
    assert "compute the sum" in kinds["train"][4]
    assert kinds["finish"][4] == "the coordinator"
    assert refused.rows == []
    assert results.rows[0][:3] == ["first", 48, 24]
    assert part.facts["epsilon spent"] == "no privacy in the protocol"


def test_a_spoilt_file_is_a_part_that_says_so(finished: Hospitals, tmp_path: Path) -> None:
    spec = finished.elsewhere("A", tmp_path)
    (tmp_path / "ledger.jsonl").write_text("{\n")
    with pytest.raises(CorruptFile, match="line 1 is none of a ledger"):
        Watched(spec)
    (tmp_path / "ledger.jsonl").unlink()
    watched = Watched(spec)
    (tmp_path / "ledger.jsonl").write_text("{\n")
    assert parts_or_fault(watched)[0].title == "These files cannot be shown"


def test_a_command_is_called_for_every_event_without_a_shell(finished: Hospitals, tmp_path: Path) -> None:
    """The end of one run; a refusal, a silent site and an alarm of the other. What a site wrote is never a word of a command."""
    watched = Watched(finished.server)
    watched.known = dict.fromkeys(watched.known, 0)
    out = tmp_path / "told"
    code = f"import os, sys; open({str(out)!r}, 'a').write(os.environ['MIL_EVENT'] + '\\t' + sys.stdin.read() + '\\n')"
    call_for(watched, [sys.executable, "-c", code], quiet())
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    told = [json.loads(text) for _, text in lines]
    assert {one["kind"] for one in told} == {"end", "refusal", "silence", "alarm"}
    assert all(line.startswith(f"{one['kind']}: ") for (line, _), one in zip(lines, told, strict=True))
    assert any(HOSTILE in one["text"] for one in told)
    call_for(watched, [sys.executable, "-c", "raise SystemExit(3)"], quiet())  # nothing new, so not called
    assert len(out.read_text().splitlines()) == len(lines)


def test_a_run_that_has_had_no_line_for_too_long_is_told_once(finished: Hospitals, tmp_path: Path) -> None:
    spec = finished.elsewhere("B", tmp_path)
    watched = Watched(spec)
    ledger = LedgerFile(tmp_path / "ledger.jsonl", "B", PartyKey(tmp_path))
    ledger.add({"event": "answered", "run": "first", "kind": "join"})
    assert list(watched.news()) == []
    watched.silent_s = 0.0
    assert [event.kind for event in watched.news()] == ["silence"]
    assert list(watched.news()) == []
    assert [one.kind for one in events_of([{"event": "refused", "reason": "x"}])] == ["refusal"]


def test_a_clock_that_was_set_back_is_said_where_silence_is_looked_for() -> None:
    """For as long as the last line lies ahead, no silence would be noticed."""
    for hours, said in ((0, ""), (-2, "no line for 7"), (2, "dated 7")):
        time = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        found = silence([{"event": "answered", "time": time}], 600.0)
        assert (said in found) if said else (found == "")


@needs_browser
@pytest.mark.parametrize("width", [1440, 390])
def test_a_browser_shows_the_page_without_a_remark_and_without_a_script(finished: Hospitals, width: int) -> None:
    for spec in (finished.server, finished.site("A")):
        with served(spec) as address, opened(address, width, 900) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"
            assert tab.locator("h2").count() >= 1
            assert tab.locator("script").count() == 0
            for scheme in ("light", "dark"):
                tab.emulate_media(color_scheme=scheme)
                assert violations(tab) == []
