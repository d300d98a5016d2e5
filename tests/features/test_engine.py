"""The engine: memory that runs short, arithmetic, devices shared between jobs, and what is said of it all."""

import io
import multiprocessing
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feature_slides import make_shard
from PIL import Image
from typer.testing import CliRunner

from mil import cli, hdf5
from mil.bench.rates import measure
from mil.commands import options
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.encoders.entry import Encoder
from mil.errors import MilError
from mil.features.accelerate import pays_from
from mil.features.device import best_device, claimed
from mil.features.engine import EncoderEngine
from mil.features.profile import Profile
from mil.features.shard import extract_shard
from mil.hospital.local import device_of
from mil.progress import Reporter
from mil.tables import write_table
from mil.training.precision import Computing

REPEATS = int(os.environ.get("REPEATS", "1"))

pytestmark = pytest.mark.slow


class Hungry(torch.nn.Module):
    """Means of the channels; no memory for more than `most` tiles at once."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, tiles):
        self.seen.append(len(tiles))
        if len(tiles) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return tiles.mean((2, 3))


def hungry(most, said=None):
    grey = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    encoder = Encoder(name="hungry", width=3, input_px=None, **grey, weights_sha256="none", module=Hungry(most))
    spec = EncoderSpec(name="colour", precision="fp32")
    return EncoderEngine(encoder, spec, torch.device("cpu"), reporter=Reporter(stream=said or io.StringIO()))


def test_where_memory_runs_short_the_batch_is_halved_and_it_goes_on_and_says_so():
    tiles = np.random.default_rng(0).integers(0, 255, (45, 8, 8, 3)).astype(np.uint8)
    said = io.StringIO()
    engine = hungry(5, said)
    engine.workers = ThreadPoolExecutor(1)  # as a GPU does: one step after the other
    whole = engine.step
    assert np.allclose(engine(tiles), tiles.mean((1, 2)) / 255, atol=1e-3)
    assert engine.step == whole // 4 == 4
    assert said.getvalue().splitlines() == [
        f"the GPU's memory is too small for {whole} tiles at once; going on with {whole // 2}",
        f"the GPU's memory is too small for {whole // 2} tiles at once; going on with {whole // 4}",
    ]
    before = len(engine.module.seen)
    assert np.allclose(engine(tiles), tiles.mean((1, 2)) / 255, atol=1e-3)  # and stays there
    assert set(engine.module.seen[before:]) == {4}
    assert len(said.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    "library", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"]
)
def test_memory_that_another_library_misses_is_halved_too_and_other_errors_are_not(library):
    engine = hungry(5)
    engine.workers = ThreadPoolExecutor(1)
    engine.module.forward = lambda tiles: fail(library) if len(tiles) > 5 else tiles.mean((2, 3))
    assert engine(np.zeros((9, 8, 8, 3), np.uint8)).shape == (9, 3)
    engine.module.forward = lambda tiles: fail("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine(np.zeros((9, 8, 8, 3), np.uint8))


def fail(message):
    raise RuntimeError(message)


def test_compiling_pays_from_fewer_tiles_where_the_network_is_slow_or_compiled_already():
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(30_000, 10_000, device="meta")
    assert pays_from(large, warm=False) < pays_from(small, warm=False)
    assert pays_from(small, warm=True) * 4 == pays_from(small, warm=False)


def test_a_network_that_cannot_be_compiled_runs_without_and_says_so(monkeypatch, tmp_path):
    said = io.StringIO()
    engine = hungry(99, said)
    monkeypatch.setattr("mil.features.engine.compiled", lambda module: fail("Triton requires a C compiler\nmore"))
    engine.compiled, engine.device = True, torch.device("meta")  # not the CPU, on which nothing is compiled
    monkeypatch.setattr(
        engine, "start", lambda tiles, count, stains: engine.whole(tiles.shape[1])
    )  # on a GPU: the first batch
    assert engine.prepare(8) >= 0
    assert not engine.compiled
    assert said.getvalue() == "encoder hungry cannot be compiled here and runs without: Triton requires a C compiler\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a usable GPU is here")
@pytest.mark.parametrize("name", ["SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"])
def test_a_job_that_was_given_a_gpu_it_cannot_use_ends_in_a_line(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    with pytest.raises(MilError, match=f"{name}=0 gives this job a GPU, but torch .*unset {name}"):
        best_device()
    monkeypatch.setenv(name, "-1")
    assert best_device().type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a usable GPU is here")
@pytest.mark.parametrize("place", ["extract", "train", "site", "bench"])
def test_so_does_every_command_that_computes(monkeypatch, place):
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    spec = EncoderSpec(name="colour")
    begin = {
        "extract": lambda: EncoderEngine(build(spec), spec),
        "train": lambda: Computing.best("auto"),
        "site": lambda: device_of(SimpleNamespace(device="auto"), SimpleNamespace(privacy=None)),
        "bench": lambda: measure([spec], 1, 1.0, print),
    }
    with pytest.raises(MilError, match="SLURM_JOB_GPUS=0 gives this job a GPU"):
        begin[place]()


def test_where_not_even_one_tile_fits_it_ends_with_the_way_out():
    with pytest.raises(MilError, match="too small for a single tile"):
        hungry(0)(np.zeros((3, 8, 8, 3), np.uint8))


@pytest.mark.repeated
def test_bf16_and_fp32_agree_on_real_tiles(shared):
    with zipfile.ZipFile(shared / "data/idc/patches.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[:: 100 // REPEATS]]
    tiles = np.stack([np.asarray(picture) for picture in pictures if picture.size == (50, 50)])
    spec = EncoderSpec(name="efficientnet_lite0")
    encoder = build(spec)
    exact, short = (
        torch.from_numpy(EncoderEngine(encoder, spec.model_copy(update={"precision": kind}))(tiles)).float()
        for kind in ("fp32", "bf16")
    )
    assert len(tiles) > 30 * REPEATS
    assert torch.cosine_similarity(exact, short).min() >= 0.999


def test_fp16_is_for_gpus():
    spec = EncoderSpec(name="efficientnet_lite0", precision="fp16")
    with pytest.raises(MilError, match="fp16 is for GPUs"):
        EncoderEngine(build(spec), spec, torch.device("cpu"))


def claim(names, folder, answers):
    first = claimed(names, folder)
    answers.put(first if claimed(names, folder) == first else "another when asked again")
    answers.get()  # holds it until told


def test_every_job_gets_a_gpu_of_its_own_until_its_process_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    pairs = [(context.Queue(), number) for number in range(3)]
    jobs, found = [], []
    for answers, _ in pairs:
        jobs.append(context.Process(target=claim, args=(["a", "b"], tmp_path / "locks", answers)))
        jobs[-1].start()
        found.append(answers.get(timeout=30))
    assert found == [0, 1, None]
    jobs[0].kill()
    jobs[0].join()
    answers = context.Queue()
    late = context.Process(target=claim, args=(["a", "b"], tmp_path / "locks", answers))
    late.start()
    assert answers.get(timeout=30) == 0  # the kernel let go of the dead one's
    for job in (*jobs[1:], late):
        job.kill()
        job.join()


def test_the_profile_says_each_stages_rate_and_the_devices_busy_share():
    profile = Profile("the GPU", readers=4, tiles=1000, wall=10.0)
    for stage, seconds in {"reading": 20.0, "encoder": 9.0, "writing": 0.5, "waiting for readers": 1.0}.items():
        profile.add(stage, seconds)
    assert profile.lines() == [
        "1,000 tiles in 10.0 s: 100 tiles/s; the GPU busy 90%",
        "  reading: 20.0 s of 4 readers, 200 tiles/s if nothing else ran",
        "  encoder: 9.0 s, 111 tiles/s if nothing else ran",
        "  waiting for readers: 1.0 s",
        "  writing: 0.5 s, 2,000 tiles/s if nothing else ran",
    ]


def test_the_profile_says_how_many_cores_a_gpu_lacks():
    profile = Profile("the GPU", readers=7, tiles=1000, wall=10.0)
    profile.add("reading", 70.0)
    profile.add("encoder", 5.0)
    assert (
        profile.lines()[-1]
        == "  short of readers: with 15 cores the GPU would be busy (`set-threads: extract` of the profile)"
    )


@pytest.mark.parametrize("profile", [False, True])
def test_the_log_has_the_profile_and_the_terminal_where_it_is_asked_for(profile, tmp_path):
    slides = make_shard(tmp_path, {"a": 3, "b": 2})
    write_table(slides, tmp_path / "slides.csv")
    command = [
        "extract",
        str(tmp_path / "slides.csv"),
        "--tiles",
        str(tmp_path / "tiles"),
        "--spec",
        '{"name": "colour"}',
    ]
    command += [
        "--folder",
        str(tmp_path / "out"),
        "--out",
        str(tmp_path / "shard0.csv"),
        "--log",
        str(tmp_path / "log"),
    ]
    done = CliRunner().invoke(cli.app, [*command, "--threads", "1", *(["--profile"] if profile else [])])
    options.reporters[-1].log.close()
    assert done.exit_code == 0, done.output
    log = (tmp_path / "log").read_text()
    for line in ("20 tiles in", "the CPU busy", "  reading:", "  encoder:", "  writing:", "; 1 reader\n"):
        assert line in log
        assert (line in done.output) == (profile or line == "; 1 reader\n")


def test_weights_on_the_command_line_come_before_the_specs(tmp_path):
    slides = make_shard(tmp_path, {"a": 1})
    write_table(slides, tmp_path / "slides.csv")
    command = [
        "extract",
        str(tmp_path / "slides.csv"),
        "--tiles",
        str(tmp_path / "tiles"),
        "--folder",
        str(tmp_path / "out"),
    ]
    command += [
        "--out",
        str(tmp_path / "shard0.csv"),
        "--spec",
        '{"name": "uni"}',
        "--weights",
        str(tmp_path / "bundle"),
    ]
    done = CliRunner().invoke(cli.app, command)
    assert isinstance(done.exception, MilError)
    assert f"encoder uni: weights {tmp_path / 'bundle'} do not exist; ask for access at" in str(done.exception)


def test_a_shard_without_a_usable_slide_is_a_manifest_all_the_same(tmp_path):
    slides = make_shard(tmp_path, {"a": 1}).assign(state="no_mpp", reason="r")
    for rows in (slides, slides[:0]):
        manifest = extract_shard(rows, tmp_path / "tiles", EncoderSpec(name="colour"), tmp_path / "out", Reporter())
        assert list(manifest.state) == ["no_mpp"] * len(rows)
    assert not (tmp_path / "out").exists()


def test_a_slide_of_one_tile_is_a_file_like_any_other(tmp_path):
    slides = make_shard(tmp_path, {"a": 1})
    spec = EncoderSpec(name="efficientnet_lite0")
    manifest = extract_shard(slides, tmp_path / "tiles", spec, tmp_path / "out", Reporter(stream=io.StringIO()))
    assert list(manifest.num_tiles) == [4]
    assert hdf5.read(tmp_path / "out" / "a.h5", "features")[0].shape == (4, 192)


class Keeping(torch.nn.Module):
    """Means of the channels, by way of an attribute, as where a hook keeps a layer's output."""

    def forward(self, tiles):
        self.kept = tiles.mean((2, 3))
        time.sleep(0.002)
        return self.kept


def test_a_users_module_that_keeps_something_between_its_layers_gets_one_step_at_a_time():
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    encoder = Encoder(
        name="python:mine.py:Keeping", width=3, input_px=None, **plain, weights_sha256="none", module=Keeping()
    )
    engine = EncoderEngine(encoder, EncoderSpec(name="colour", precision="fp32"), torch.device("cpu"), threads=4)
    tiles = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    assert engine(tiles) == pytest.approx(tiles.mean((1, 2)) / 255, abs=1e-3)


def test_a_users_module_whose_tensors_are_of_another_type_ends_in_a_line(tmp_path):
    """A tensor that is neither parameter nor buffer stays in fp32."""
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.weight, self.bias = torch.nn.Parameter(torch.ones(4, 3, 3, 3)), torch.ones(4)\n"
        "    def forward(self, tiles):\n"
        "        return torch.nn.functional.conv2d(tiles, self.weight, self.bias).mean((2, 3))\n"
    )
    spec = EncoderSpec(name=f"python:{tmp_path / 'mine.py'}:Net", input_px=32, precision="bf16")
    engine = EncoderEngine(build(spec), spec, torch.device("cpu"), threads=1)
    with pytest.raises(MilError, match=r"fails in bf16 on cpu: RuntimeError: .*; try precision fp32") as raised:
        engine(np.zeros((2, 32, 32, 3), np.uint8))
    assert "\n" not in str(raised.value)
