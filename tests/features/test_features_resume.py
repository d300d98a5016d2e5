"""Killed, robbed of its disk, deceived about its slide: extraction afterwards equals one that was left alone."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feature_slides import make_shard, write_slide, write_tiles

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.errors import MilError
from mil.features.shard import extract_shard
from mil.progress import quiet
from mil.slides.fingerprint import fingerprint
from mil.training.store import FeatureStore

pytestmark = pytest.mark.slow

COLOUR = EncoderSpec(name="colour", batch_size=48)
KILLS = 10 * int(os.environ.get("REPEATS", "1"))

# Runs `extract_shard` in children and kills each after a random time; imports once, since torch takes seconds.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import pandas as pd
from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.features.engine import EncoderEngine
from mil.features.shard import extract_shard
from mil.progress import quiet

root, kills = Path(sys.argv[1]), int(sys.argv[2])
slides = pd.read_csv(root / "slides.csv", keep_default_na=False, dtype=str)
spec, chance = EncoderSpec(name="colour", batch_size=48), random.Random(0)

def state():
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (root / "features").glob("*.h5")}

def child():
    pid = os.fork()
    if not pid:
        try:
            extract_shard(slides, root / "tiles", spec, root / "features", quiet())
        finally:
            os._exit(0)
    return pid

def waited(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False

began = time.monotonic()
os.waitpid(child(), 0)
whole = time.monotonic() - began
for path in (root / "features").glob("*.h5"):
    path.unlink()
killed = again = 0
seen = {}
while killed < kills:
    pid = child()
    if not waited(pid, chance.uniform(0.05, 0.9) * whole):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
    now = state()
    for name, mark in now.items():
        hdf5.verify(root / "features" / name)
        again += name in seen and seen[name] != mark
    again += len(set(seen) - set(now))
    seen = now
    if len(seen) == len(slides):  # all done before the next kill: begin anew
        for name in seen:
            (root / "features" / name).unlink()
        seen = {}
os.waitpid(child(), 0)
print(json.dumps({"killed": killed, "computed again": again, "files": sorted(state())}))
"""


@pytest.mark.repeated
def test_killed_again_and_again_nothing_is_lost_or_computed_again(tmp_path):
    slides = make_shard(tmp_path, {f"s{number}": 12 + number for number in range(6)})
    slides.to_csv(tmp_path / "slides.csv", index=False)
    undisturbed = extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "undisturbed", quiet())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"killed": KILLS, "computed again": 0, "files": [f"s{number}.h5" for number in range(6)]}
    for slide_id, checksum in zip(undisturbed.slide_id, undisturbed.checksum, strict=True):
        assert hdf5.verify(tmp_path / "features" / f"{slide_id}.h5") == checksum
    assert not list((tmp_path / "features").glob(".*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_with_one_line_and_no_file(tmp_path):
    slides = make_shard(tmp_path, {"a": 30, "b": 30})
    script = (
        "import resource, sys, signal\nsys.dont_write_bytecode = True\nfrom pathlib import Path\nimport pandas as pd\n"
        "from mil.config import EncoderSpec\nfrom mil.errors import MilError\n"
        "from mil.features.shard import extract_shard\nfrom mil.progress import quiet\n"
        "root = Path(sys.argv[1])\nslides = pd.read_csv(root / 'slides.csv', keep_default_na=False)\n"
        "from mil.features import pipeline\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nmade = pipeline.SharedMemory\n"
        "def then_the_disk_is_full(size):\n"  # the ring is in memory; what is written after it finds no room
        "    ring = made(size)\n    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n    return ring\n"
        "pipeline.SharedMemory = then_the_disk_is_full\n"
        "try:\n    extract_shard(slides, root / 'tiles', EncoderSpec(name='colour'), root / 'features', quiet())\n"
        "except MilError as error:\n    print(error)\n"
    )
    slides.to_csv(tmp_path / "slides.csv", index=False)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("\n") == 1, done.stderr
    assert "a.h5: cannot be written" in done.stdout
    assert list((tmp_path / "features").iterdir()) == []
    assert list(extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "features", quiet()).state) == ["ok", "ok"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    slides = make_shard(tmp_path, {"a": 2})
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(MilError, match=r"features.*cannot be written") as caught:
        extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "features", quiet())
    assert "\n" not in str(caught.value)


def test_another_slide_under_the_same_name_is_noticed(tmp_path):
    slides = make_shard(tmp_path, {"a": 3})
    before = extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "features", quiet())
    path = tmp_path / "a.tif"
    write_slide(path, 3, seed=77)
    slides.loc[0, "fingerprint"] = fingerprint(path)
    stale = extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "features", quiet())
    assert list(stale.state) == ["stale_tiles"]
    write_tiles(tmp_path / "tiles", "a", path)
    after = extract_shard(slides, tmp_path / "tiles", COLOUR, tmp_path / "features", quiet())
    assert after.checksum[0] != before.checksum[0]


def test_other_weights_under_the_same_name_are_noticed(tmp_path):
    slides = make_shard(tmp_path, {"a": 2})
    code = tmp_path / "net.py"
    text = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten(), Scale())\n"
    text += "class Scale(torch.nn.Module):\n    def forward(self, x):\n        return x * {}\n"
    spec = EncoderSpec(name=f"python:{code}:net", input_px=64)
    found = []
    for factor in (1, 2, 2):
        code.write_text(text.format(factor))
        os.utime(code, (0, 0))  # the same length and second: a cached translation of the file before would be taken
        extract_shard(slides, tmp_path / "tiles", spec, tmp_path / "features", quiet())
        found.append((hdf5.read(tmp_path / "features" / "a.h5", "features")[0], build(spec).weights_sha256))
    assert found[0][1] != found[1][1] == found[2][1]
    assert np.allclose(found[0][0].astype(float) * 2, found[1][0].astype(float), rtol=1e-2)


def test_a_reader_that_dies_is_said_and_finished_slides_are_kept(tmp_path):
    from mil.features.readers import ProcessReaders, SharedMemory

    memory = SharedMemory(4096)
    readers = ProcessReaders(1, memory)
    readers.readers[0].process.kill()
    with pytest.raises(MilError, match=r"a reader process ended .killed"):
        list(iter(lambda: readers.answers(10), None))
    readers.close()


READ_ONLY = """
import os, sys
from pathlib import Path
import pandas as pd
from mil.config import EncoderSpec
from mil.errors import MilError
from mil.features.shard import extract_shard
from mil.progress import quiet
root = Path(sys.argv[1])
slides = pd.read_csv(root / "slides.csv", keep_default_na=False)
(root / "features").chmod(0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # root writes everywhere
try:
    extract_shard(slides, root / "tiles", EncoderSpec(name="colour"), root / "features", quiet())
except MilError as error:
    print(error)
"""


def test_a_read_only_folder_is_one_line_and_what_is_in_it_stays():
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        root.chmod(0o755)  # for the user that the child becomes
        slides = make_shard(root, {"a": 2, "b": 2})
        extract_shard(slides[:1], root / "tiles", COLOUR, root / "features", quiet())
        slides.to_csv(root / "slides.csv", index=False)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, home], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.count("\n") == 1, done.stderr
        assert "b.h5: cannot be written (Permission denied)" in done.stdout
        assert [path.name for path in (root / "features").iterdir()] == ["a.h5"]
        hdf5.verify(root / "features" / "a.h5")
        (root / "features").chmod(0o755)


def test_bags_refuse_features_of_two_weights(tmp_path):
    code, bags = tmp_path / "net.py", []
    text = (
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten())  # {}\n"
    )
    spec = EncoderSpec(name=f"python:{code}:net", input_px=64)
    for site, year in (("A", 2024), ("B", 2025)):
        code.write_text(text.format(year))
        slides = make_shard(tmp_path / site, {f"{site}1": 2})
        extract_shard(slides, tmp_path / site / "tiles", spec, tmp_path / site / "features" / "net", quiet())
        bags.append({"patient_id": site, "site": site, "slides": f"{site}1"})
    assert FeatureStore.open(pd.DataFrame(bags[:1]), tmp_path, "net").sizes.tolist() == [8]
    with pytest.raises(MilError, match=r"weights_sha256 is [0-9a-f]{64}, but [0-9a-f]{64} in"):
        FeatureStore.open(pd.DataFrame(bags), tmp_path, "net")
