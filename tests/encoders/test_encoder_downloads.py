"""`mil encoders fetch`: a hub on the loopback interface, bundles, and weights that were altered."""

import hashlib
import http.server
import io
import os
import re
import threading

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

from mil.config import EncoderSpec
from mil.encoders import bundle
from mil.encoders.build import build, make_random
from mil.encoders.listing import list_encoders, show_encoder
from mil.encoders.sources import HubFile, UrlFile
from mil.encoders.table import ENCODERS
from mil.errors import MilError
from mil.progress import Reporter, quiet

MAIN = "c0ffee" + 34 * "0"


class Hub(http.server.SimpleHTTPRequestHandler):
    """Answers like the hub: Phikon and Kaiko are open, whose `main` is at commit c0ffee; everything else is gated."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(self.server.content)

    def answer(self, body):
        if self.path.startswith(("/owkin/phikon/resolve/", "/1aurent/vit_small_patch16_224.kaiko")):
            asked = self.path.split("/")[4]
            self.server.asked.append(asked)
            self.send_response(200)
            self.send_header("X-Repo-Commit", MAIN if asked == "main" else asked)
            self.send_header("ETag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path.endswith(".pth"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.content, server.asked = b"weights", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_fetch_fills_a_bundle_with_commits_and_hashes_and_names_the_page_of_a_gated_model(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, mirror, said = tmp_path / "bundle", f"http://127.0.0.1:{hub.server_port}", io.StringIO()
    bundle.fetch(["phikon", "colour"], folder, Reporter(stream=said), endpoint=mirror)
    bundle.fetch(["phikon"], folder, Reporter(stream=said), endpoint=mirror)
    assert "phikon/model.safetensors, 7 bytes" in said.getvalue()
    assert "colour: none needed; nothing to fetch" in said.getvalue()
    assert "model.safetensors is there" in said.getvalue()
    assert set(hub.asked) == {ENCODERS["phikon"].source.revision}
    assert f'"commit": "{ENCODERS["phikon"].source.revision}"' in (folder / "bundle.json").read_text()
    with pytest.raises(MilError, match=r"uni is gated: ask for access at https://huggingface\.co/MahmoodLab/UNI"):
        bundle.fetch(["uni"], folder, quiet(), endpoint=mirror)
    with pytest.raises(MilError, match="cannot be read"):
        build(EncoderSpec(name="phikon", weights=str(folder)))
    assert list(bundle.check(folder, ["uni", "colour"]).state) == ["missing", "ok"]


def test_what_the_registry_does_not_pin_is_held_to_what_was_fetched_first(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, mirror, name = tmp_path / "bundle", f"http://127.0.0.1:{hub.server_port}", "kaiko_vits16"

    def fetch():
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache{len(hub.asked)}"))
        bundle.fetch([name], folder, quiet(), endpoint=mirror)

    fetch()
    target = bundle.bundled(folder, name, ENCODERS[name].source)
    assert hub.asked[0] == "main"
    assert f'"commit": "{MAIN}"' in (folder / "bundle.json").read_text()
    target.unlink()
    hub.asked.clear()
    fetch()
    assert set(hub.asked) == {MAIN}
    hub.content = b"others!"
    target.write_bytes(b"altered")
    with pytest.raises(MilError, match=r"now gives another file .* to take the new one, remove 'kaiko_vits16'"):
        fetch()
    assert target.read_bytes() == b"altered"


def test_every_hub_file_says_whether_it_is_pinned():
    pinned = {row["name"]: row["pinned"] for row in list_encoders()}
    for name in ENCODERS:
        source = ENCODERS[name].source
        assert not isinstance(source, HubFile) or re.fullmatch(r"[0-9a-f]{40}", source.revision or MAIN)
        said = "not pinned" in show_encoder(name)
        assert pinned[name] != said
    assert "commit b55a5ec6cade1a39edfe6534189a9b8ca7a022f0, sha256 56ef09b44a25dc5c" in show_encoder("uni")
    assert not pinned["hibou_l"]


def test_fetch_from_a_fixed_address_holds_the_file_to_its_hash(hub, tmp_path):
    url = f"http://127.0.0.1:{hub.server_port}/net.pth"
    bundle._download("net", UrlFile(url, "page"), tmp_path / "net.pth", {}, None)
    assert (tmp_path / "net.pth").read_bytes() == b"weights"
    with pytest.raises(MilError, match="is not 00000000"):
        bundle._download("net", UrlFile(url, "page", sha256="00000000"), tmp_path / "other.pth", {}, None)
    assert not (tmp_path / "other.pth").exists()


def test_offline_fetch_is_one_line_with_the_page(tmp_path):
    with pytest.raises(MilError, match=r"cannot be fetched from https://huggingface.co/owkin/phikon") as caught:
        bundle.fetch(["phikon"], tmp_path, quiet())
    assert "\n" not in str(caught.value)


def test_a_bundle_is_used_and_altered_weights_in_it_are_noticed(tmp_path):
    entry = ENCODERS["kaiko_vits16"]
    target = bundle.bundled(tmp_path, entry.name, entry.source)
    target.parent.mkdir()
    save_file(make_random(entry).net.state_dict(), target)
    digest = bundle.sha256_of(target)
    (tmp_path / "bundle.json").write_text(f'{{"kaiko_vits16": {{"sha256": "{digest}"}}}}')
    assert build(EncoderSpec(name="kaiko_vits16", weights=str(tmp_path))).weights_sha256 == digest
    assert list(bundle.check(tmp_path, ["kaiko_vits16"]).state) == ["ok"]
    with target.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert list(bundle.check(tmp_path, ["kaiko_vits16"]).state) == ["altered"]
    with pytest.raises(MilError, match=r"bundle\.json"):
        build(EncoderSpec(name="kaiko_vits16", weights=str(tmp_path)))


def test_list_and_show_tell_the_terms():
    gated = {row["name"]: row["gated"] for row in list_encoders()}
    assert gated["uni"]
    assert not gated["phikon"]
    assert "ask at https://huggingface.co/bioptimus/H-optimus-0" in show_encoder("h_optimus_0")
    assert "resized to 256 px and cut to 224" in show_encoder("prov_gigapath")
