"""Messages as files and in pieces: the same run as in memory, and nothing that is no message is taken."""

import json
from pathlib import Path

import inprocess
import pytest
import torch
from hospitals import PROTOCOL, edited, make_hospitals
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from safetensors.torch import load, load_file, save

from mil.errors import CorruptFile
from mil.hospital import blobs
from mil.hospital.flare import executor
from mil.hospital.flare.pieces import PIECE, START, Pieces
from mil.hospital.flare.wire import MESSAGE, TASK, WORD, envelope
from mil.hospital.keys import PartyKey
from mil.hospital.masking import masked, summed
from mil.hospital.payload import PayloadError, digest, parsed
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.hospital.standing import Progress, progress_of

SITES = {**dict.fromkeys("ABD", ("train", 48)), "C": ("external", 30)}


@pytest.mark.slow
def test_messages_as_files_make_the_same_run(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    training = {"rounds": 2, "batch_size": 8, "lr": 0.01}
    hospitals = make_hospitals(tmp_path, sites=SITES, experiment={**PROTOCOL["experiment"], "training": training})
    digests = []
    for name in ("memory", "files"):
        sites = {site: Site.open(hospitals.site(site)) for site in SITES}
        files = tmp_path / "answers" if name == "files" else None
        (tmp_path / "answers").mkdir(exist_ok=True)
        inprocess.run(Server(hospitals.protocol, name, tmp_path / name), sites, files=files)
        lines = [json.loads(line) for line in (tmp_path / name / "ledger.jsonl").read_text().splitlines()]
        digests.append([line["global_sha256"] for line in lines if line["event"] == "answered"])
    assert digests[0] == digests[1]
    assert len(digests[0]) > 6


def test_rows_in_memory_in_a_file_in_a_message_in_it_and_computed_are_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = {
        "w": torch.randint(-(2**62), 2**62, (3, 5, 7), generator=generator),
        "num_bags": torch.tensor([20, 30, 40]),
    }
    made = blobs.stacked([{name: value[number] for name, value in plain.items()} for number in range(3)], list(plain))
    blobs.write(tmp_path / "answer", made, {"mil": "{}"})
    blobs.write(tmp_path / "question", blobs.Lazy({"relay": blobs.as_part(tmp_path / "answer")}), {})
    within = blobs.read(tmp_path / "question").parts["relay"]
    found = [plain, made, blobs.read(tmp_path / "answer"), blobs.read(within), load((tmp_path / "answer").read_bytes())]
    for tensors in found:
        assert digest(tensors) == digest(plain)
        for name, value in plain.items():
            assert torch.equal(tensors[name], value)
            assert all(torch.equal(blobs.row_of(tensors, name, number), value[number]) for number in range(3))
    assert blobs.digest_of(within) == blobs.digest_of((tmp_path / "answer").read_bytes())
    assert torch.equal(summed(blobs.row_of(one, "w", 1) for one in found[:3]), 3 * plain["w"][1])


def test_masks_are_the_same_row_by_row_and_whole(tmp_path: Path) -> None:
    parties = {name: PartyKey(tmp_path / name) for name in "AB"}
    keys = {name: party.public for name, party in parties.items()}
    plain = {"w": torch.arange(12).view(3, 4), "num_bags": torch.tensor([20, 30, 40])}
    hidden = {name: masked(plain, parties[name], name, keys, "here") for name in "AB"}
    assert torch.equal(hidden["A"]["num_bags"], plain["num_bags"])
    for number in range(3):
        rows = [blobs.row_of(one, "w", number) for one in hidden.values()]
        assert torch.equal(rows[0], hidden["A"]["w"][number])
        assert torch.equal(summed(rows), 2 * plain["w"][number])
    assert len({int(one) for one in (hidden["A"]["w"] - plain["w"]).flatten()}) == 12  # no mask stands twice


def test_a_file_holds_what_safetensors_reads_and_is_read_again(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.randn(2, 3), "c": torch.zeros(0, 4).double()}
    tensors["d"] = torch.arange(5)
    blobs.write(tmp_path / "file", tensors, {"mil": "{}"})
    found, other = blobs.read(tmp_path / "file"), load_file(tmp_path / "file")
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert torch.equal(other[name], value)


def stating(tensors: dict) -> bytes:
    """A file of 8 bytes of numbers whose header says something else."""
    text = json.dumps({"__metadata__": {"mil": '{"kind": "train", "values": {}}'}, **tensors}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


NO_MESSAGES = [
    b"",
    bytes(50),
    b"\xff" * 200,
    save({"w": torch.zeros(3)}),
    save({"w": torch.zeros(3)}, {"mil": '{"kind": "train", "values": {}}'})[:-1],
    save({"w": torch.zeros(3).half()}, {"mil": '{"kind": "train", "values": {}}'}),
    *(
        stating({"w": stated})
        for stated in (
            {"dtype": "I64", "shape": [2], "data_offsets": [0, 8]},
            {"dtype": "I64", "shape": [-1], "data_offsets": [0, 8]},
            {"dtype": "I64", "shape": [True], "data_offsets": [0, 8]},
            {"dtype": "I64", "shape": 1, "data_offsets": [0, 8]},
            {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
            {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]},
            {"dtype": [], "shape": [1], "data_offsets": [0, 8]},
            {"shape": [1]},
            None,
            [1],
        )
    ),
    stating(
        {
            "v": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
            "w": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        }
    ),
]


@pytest.mark.parametrize("content", NO_MESSAGES, ids=range(len(NO_MESSAGES)))
def test_a_file_that_is_no_message_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PayloadError, match="not a message of ours"):
        parsed(tmp_path / "file", "here")
    (tmp_path / "file").write_bytes(b"before" + content)
    with pytest.raises(PayloadError, match="not a message of ours"):
        parsed(blobs.Stored(tmp_path / "file", 6, (len(content),)), "here")


def from_site(site: str) -> FLContext:
    """The context of a request of `site`."""
    context, peer = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False)
    context.set_peer_context(peer)
    return context


def request(**values) -> Shareable:
    found, names = Shareable(), {"start": START, "content": MESSAGE, "word": WORD}
    found.update({names[name]: value for name, value in values.items()})
    return found


def test_only_who_was_asked_reads_and_writes_and_no_more_than_the_cap(tmp_path: Path) -> None:
    question = bytes(range(256)) * (PIECE // 200)
    (tmp_path / "question").write_bytes(question)
    pieces = Pieces(tmp_path / "pieces", 100)
    word = pieces.ask(tmp_path / "question", ["A"])
    for other in ("", None, pieces.ask(tmp_path / "question", ["A"]).upper(), word):  # somebody who says that it is A
        reply = pieces.read("", request(start=0, word=other), from_site("A"))
        assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
        reply = pieces.write("", request(start=0, content=b"x", word=other), from_site("A"))
        assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    word = pieces.word
    first, second = (pieces.read("", request(start=start, word=word), from_site("A")) for start in (0, PIECE))
    assert first[MESSAGE] + second[MESSAGE] == question
    for site, start in (("B", 0), ("A", -1), ("A", "0"), ("A", None)):
        assert (
            pieces.read("", request(start=start, word=word), from_site(site)).get_return_code()
            == ReturnCode.BAD_REQUEST_DATA
        )
    for start, content in ((0, b"old" * 9), (0, b"ab"), (2, b"cd"), (0, b"ab")):
        assert (
            pieces.write("", request(start=start, content=content, word=word), from_site("A")).get_return_code()
            == ReturnCode.OK
        )
    for site, start, content in (("B", 0, b"x"), ("A", -1, b"x"), ("A", 99, b"xy"), ("A", 0, "x"), ("A", True, b"x")):
        reply = pieces.write("", request(start=start, content=content, word=word), from_site(site))
        assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert pieces.answer("A", 4).read_bytes() == b"abcd"
    late = pieces.write("", request(start=0, content=b"xy", word=word), from_site("A"))
    assert late.get_return_code() == ReturnCode.BAD_REQUEST_DATA  # an answer that was taken stays as it was judged
    assert pieces.answer("A", 4).read_bytes() == b"abcd"


@pytest.mark.parametrize("values", [{"run": ".."}, {"run": "x" * 300}, {"run": 7}, {"canary": "yes"}, {"canary": 1}])
def test_the_first_question_of_a_job_is_typed_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict
) -> None:
    """Its run names a folder of the workspace: with `..` files were written beside it, and a long name was a fault of the program."""
    hospitals = make_hospitals(tmp_path)
    monkeypatch.setattr(executor, "spec_file", lambda _: hospitals.folder / "A" / "site.yaml")
    context, before = FLContext(), sorted(tmp_path.rglob("*"))
    context.set_prop(ReservedKey.IDENTITY_NAME, "A")
    server = Server(hospitals.protocol, "run", tmp_path / "run")
    site, known = executor.SiteExecutor(), set(before) | set((tmp_path / "run").rglob("*"))
    reply = site.execute(TASK, envelope(edited(server.question(), **values)), context, Signal())
    assert reply["code"] == "payload"
    assert site.site is None
    assert set(tmp_path.rglob("*")) - known <= {tmp_path / "run"}


def test_a_long_header_of_a_state_is_not_read(tmp_path: Path) -> None:
    """A snapshot comes from the coordinator, and JSON takes forty times its size in memory."""
    path = tmp_path / "checkpoint.safetensors"
    text = b'{"__metadata__": {"progress": "{}"}}'
    for more, said in ((0, None), (blobs.LONGEST_HEADER, "a header of")):
        head = text + b" " * more
        path.write_bytes(len(head).to_bytes(8, "little") + head)
        if said is None:
            assert progress_of(path) == Progress()
        else:
            with pytest.raises(CorruptFile, match=said):
                progress_of(path)
