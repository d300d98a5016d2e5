"""Damage files, processes and settings at random and count what happens: writes docs/reliability.md (`make faults`).

Each case says its expected outcome before it is run. An outcome that is not expected ends the run with exit code 1.
"""

import importlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mil import hdf5
from mil.config import EncoderSpec
from mil.errors import MilError, SlideError
from mil.files import write_text
from mil.progress import quiet
from mil.slides.isolation import Isolated
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.strict_yaml import load_yaml
from mil.tables import write_table
from mil.training.artefact import FILES, Run
from mil.training.run import train
from mil.training.store import FeatureStore

random = np.random.default_rng(0)
CASES: list[tuple[str, str, tuple[str, ...], Callable[[Path], Iterator[str]]]] = []
TARGET = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"


def case(fault: str, expected: str, *allowed: str):
    """Enter a case: what is done, what must happen, and the outcomes that count as that."""

    def enter(function: Callable[[Path], Iterator[str]]) -> None:
        CASES.append((fault, expected, allowed, function))

    return enter


def write(path: Path, slide: str, seed: int = 0, **about: object) -> None:
    """A features file of 300 tiles."""
    generator = np.random.default_rng(seed)
    with hdf5.writing(path) as file:
        file.append("features", generator.normal(size=(300, 8)).astype(np.float16))
        file.append("coords", generator.integers(0, 9999, (300, 2)))
        file.annotate(
            {"slide_id": slide, "encoder": "e", "weights_sha256": "00", "size_px": 224, "tile_mpp": 0.5} | about
        )


def outcome(call: Callable[[], object], equal: Callable[[], bool] = lambda: False) -> str:
    """`refused` for one line, `equal` where the numbers are as written, `in silence` for others, else the error's name."""
    hdf5._checked.clear()
    try:
        call()
        return "equal" if equal() else "in silence"
    except MilError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    except Exception as error:  # noqa: BLE001  counted
        return type(error).__name__


def flipped(content: bytes) -> bytes:
    """One random bit the other way."""
    at = int(random.integers(len(content)))
    return content[:at] + bytes([content[at] ^ (1 << int(random.integers(8)))]) + content[at + 1 :]


@case("one bit of an HDF5 file flipped", "one line, or the numbers as written", "refused", "equal")
def flips(folder: Path) -> Iterator[str]:
    """1,000 flips of one file."""
    path = folder / "s1.h5"
    write(path, "s1")
    whole, before, about = path.read_bytes(), hdf5.read(path, "features", "coords"), hdf5.attributes(path)
    for _ in range(1000):
        path.write_bytes(flipped(whole))

        def equal() -> bool:
            read = hdf5.read(path, "features", "coords")
            return all(map(np.array_equal, read, before)) and hdf5.attributes(path) == about

        yield outcome(lambda: hdf5.read(path, "features", "coords"), equal)


@case("an HDF5 file cut at a random place", "one line", "refused")
def cuts(folder: Path) -> Iterator[str]:
    """100 cuts."""
    path = folder / "s1.h5"
    write(path, "s1")
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(whole[: int(random.integers(len(whole)))])
        yield outcome(lambda: hdf5.read(path, "features"))


@case(
    "another file of features under a slide's name: of another slide, extraction, encoder, stain or width",
    "one line",
    "refused",
)
def wrong_files(folder: Path) -> Iterator[str]:
    """Six kinds."""
    bags = pd.DataFrame({"patient_id": ["a", "b"], "site": ["A", "A"], "slides": ["s1", "s2"]})
    place = folder / "A/features/e"
    for change in (
        "slide",
        "older",
        {"encoder": "f"},
        {"weights_sha256": "11"},
        {"spec": {"stain": "macenko"}},
        "cohort",
    ):
        for seed, slide in enumerate(("s1", "s2")):
            write(place / f"{slide}.h5", slide, seed)
        rows = [
            ("s1", "ok", "", 300, hdf5.verify(place / "s1.h5")),
            ("s2", "ok", "", 300, hdf5.verify(place / "s2.h5")),
        ]
        columns = ["slide_id", "state", "reason", "num_tiles", "checksum"]
        write_table(pd.DataFrame(rows, columns=columns), place / "shard0.csv")
        if change == "slide":
            shutil.copy(place / "s1.h5", place / "s2.h5")
        elif change == "older":
            write(place / "s2.h5", "s2", 7)
        elif change != "cohort":
            (place / "shard0.csv").unlink()
            write(place / "s2.h5", "s2", 1, **change)
        spec = EncoderSpec(name="uni2_h") if change == "cohort" else None
        yield outcome(lambda spec=spec: FeatureStore.open(bags, folder, "e", spec=spec))


@case("one bit of a file of a run flipped", "one line", "refused")
def run_files(folder: Path) -> Iterator[str]:
    """20 flips of each file."""
    rows = [{"patient_id": f"p{k}", "site": "A", "role": "train", "label": k % 2, "repeat0": k // 2 % 2,
             "repeat0_fold0_inner": k // 4 % 2, "repeat0_fold1_inner": k // 4 % 2} for k in range(16)]  # fmt: skip
    features = FeatureStore.of({row["patient_id"]: random.normal(size=(5, 4)).astype(np.float32) for row in rows})
    stanza = {"encoder": "e", "endpoint": "r", "model": "mean", "strategy": "pooled", "training": {"rounds": 1}}
    endpoint = EndpointSpec(folds=2, inner_folds=2)
    train(ExperimentSpec.model_validate(stanza), endpoint, pd.DataFrame(rows), features, quiet()).save(folder)
    for name in (*FILES, "spec.json"):
        content = (folder / name).read_bytes()
        for _ in range(20):
            (folder / name).write_bytes(flipped(content))
            yield outcome(lambda: Run.load(folder))
        (folder / name).write_bytes(content)


CHILD = """
import os, resource, struct, sys
import numpy as np
from mil import hdf5
from mil.errors import MilError

def write(path):
    with hdf5.writing(path) as file:
        file.append("features", np.random.default_rng(0).normal(size=(300, 8)))
        file.annotate({"slide_id": "s1"})

def forge(written):
    answer = bytes.fromhex(written)
    os.write(4, struct.pack("<Q", len(answer)) + answer)
    os._exit(0)

if __name__ == "__main__" and sys.argv[2] == "for ever":
    print("ready", flush=True)
    while True:
        write(sys.argv[1])
elif __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    try:
        write(sys.argv[1])
    except MilError as error:
        print(error)
"""


def child(folder: Path) -> Path:
    """The program of processes that are killed, limited or taken over."""
    (folder / "faults_child.py").write_text(CHILD)
    return folder / "faults_child.py"


@case("SIGKILL while two processes write one file over and over", "the file is absent or whole", "equal")
def kills(folder: Path) -> Iterator[str]:
    """10 kills."""
    path, program = folder / "s1.h5", child(folder)
    for _ in range(5):
        both = [
            subprocess.Popen(
                [sys.executable, str(program), str(path), "for ever"], env=environment(), stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(float(random.uniform(0, 0.2)))
        for process in both:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            yield outcome(lambda: path.is_file() and hdf5.verify(path), lambda: True)


@case("a limit on file sizes at a random byte, as where a disk is full", "one line, no crash, no file", "refused")
def full(folder: Path) -> Iterator[str]:
    """8 limits."""
    program = child(folder)
    for limit in random.integers(1, 9000, 8):
        command = [sys.executable, str(program), str(folder / "s1.h5"), str(limit)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        one_line = done.stdout.count("\n") == 1 and not done.stderr and done.returncode == 0
        yield "refused" if one_line and not list(folder.glob("*s1.h5*")) else f"exit {done.returncode}"


def environment() -> dict[str, str]:
    """With what this process imports from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@case("a slide takes over its reader, which answers with a pickle or nonsense", "one line, nothing executed", "refused")
def answers(folder: Path) -> Iterator[str]:
    """Five answers."""
    sys.path.insert(0, str(child(folder).parent))
    forge = importlib.import_module("faults_child").forge
    for answer in (pickle.dumps(SlideError("executed", "x")), b"[]", b'"done"', b"[" * 99_999, b"\xff"):
        worker = Isolated()
        yield outcome(lambda worker=worker, answer=answer: worker.call(forge, answer.hex(), name="a.svs", timeout_s=60))
        worker.close()


@case("settings that YAML reads otherwise than they look, or without end", "one line", "refused")
def settings(folder: Path) -> Iterator[str]:
    """Nine texts."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
        f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]"
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = ("a: 1\na: 2", "a: 010", "a: 1:30", "a: 1_0", "a: " + "9" * 5000, "a: " + "[" * 2000 + "]" * 2000, bomb)
    for text in (*texts, "a: &x [*x]", "a: !!python/object/apply:os.system [ls]"):
        yield outcome(lambda text=text: load_yaml(text, str(folder / "config.yaml")))


@case("the clock set back or forward by years between writing and reading", "the numbers as written", "equal")
def clocks(folder: Path) -> Iterator[str]:
    """20 times of last change."""
    path = folder / "s1.h5"
    write(path, "s1")
    before = hdf5.read(path, "features")[0]
    for when in random.integers(0, 4_000_000_000, 20):
        os.utime(path, (int(when), int(when)))
        yield outcome(lambda: None, lambda: bool(np.array_equal(hdf5.read(path, "features")[0], before)))


def main() -> None:
    """Run all cases and write the page."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines, bad = [], 0
    for fault, expected, allowed, function in CASES:
        with tempfile.TemporaryDirectory() as folder:
            counts = Counter(function(Path(folder)))
        wrong = sum(number for name, number in counts.items() if name not in allowed)
        bad += wrong
        told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
        lines.append(f"| {fault} | {expected} | {sum(counts.values()):,} | {told} | {wrong} |")
        print(lines[-1], flush=True)
    page = "# Reliability\n\nGenerated by `make faults` (`benchmarks/faults.py`): faults made on purpose, what must happen, what happened.\n"
    page += "`refused`: an error of one line that names the file. `equal`: the numbers are as they were written.\n\n"
    page += "| fault | expected | trials | outcome | not expected |\n|---|---|---:|---|---:|\n"
    write_text(TARGET, page + "\n".join(lines) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
