"""A small cohort of slides and every stage of the workflow on it, each in a process of its own, for `benchmarks/faults_stages.py`."""

import atexit
import functools
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from threadpoolctl import threadpool_limits

from mil import cli
from mil.commands import options
from mil.config import Config
from mil.tables import write_table

REPEATS = int(os.environ.get("REPEATS", "1"))
LEFT_OUT = {"baseline"} if REPEATS == 1 else set()  # takes as long as all others
SITES = {"north": "train", "south": "train", "east": "external"}

for module in ("training.run", "predictions.attention", "tiles.contact", "features.shard", "metrics.comparison", "baselines.write",
               "figures", "report.build", "slides.check"):  # fmt: skip
    importlib.import_module(f"mil.{module}")  # once here, not once in each process


def cohort(folder: Path, name: Callable[[str], str] = str) -> Config:
    """Three hospitals of eight patients, one slide each, below `folder/data`; the settings of one experiment."""
    (folder / "data").mkdir(parents=True)
    stream, rows, patients = np.random.default_rng(0), [], []
    for site in SITES:
        for number in range(8):
            pixels = np.full((192, 320, 3), 245, np.uint8)
            pixels[16:176, 20:290] = stream.integers(90, 180, (160, 270, 3)) - 60 * (number % 2) * np.array([1, 0, 0])
            path = folder / "data" / f"{site}{number}.tif"
            tifffile.imwrite(
                path,
                pixels,
                photometric="rgb",
                tile=(64, 64),
                compression="deflate",
                resolution=(2e4, 2e4),
                resolutionunit=3,
            )
            rows.append((name(f"{site}-{number}-s"), name(f"{site}-{number}"), site, path.name))
            patients.append((name(f"{site}-{number}"), number % 2, 40 + number))
    write_table(pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "path"]), folder / "data/slides.csv")
    write_table(pd.DataFrame(patients, columns=["patient_id", "response", "age"]), folder / "data/patients.csv")
    return Config.model_validate(
        {
            "cohort": "faults",
            "slides": {"sheet": "data/slides.csv", "patients": "data/patients.csv", "roles": SITES},
            "tiles": {"size_px": 64, "mpp": 0.5, "tissue": {"mpp": 4, "min_area_um2": 100, "margin_um": 0}},
            "encoders": {"colour": {"name": "colour"}},
            "endpoints": {"response": {"folds": 2, "inner_folds": 2}},
            "experiments": {
                "attention": {
                    "encoder": "colour", "endpoint": "response", "strategy": "fedavg",
                    "model": {"name": "gated_attention", "hidden": 8, "attention": 4},
                    "training": {"rounds": 4, "local_epochs": 1},
                }
            },
            "run": ["attention"],
            "metrics": {"bootstrap": 100, "permutations": 10, "clinical": ["age"]},
            "figures": {"formats": ["png"], "dpi": 72},
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A command and the files that it makes, as patterns below `results`."""

    arguments: tuple[str, ...]
    makes: tuple[str, ...]


def stages(config: Config) -> dict[str, Stage]:
    """Every command of the workflow in its order, by name; those of a site are called NAME.SITE."""
    spec = {name: one.to_json() for name, one in vars(config).items() if hasattr(one, "to_json")}
    spec |= {"endpoint": config.endpoints["response"].to_json(), "encoder": config.encoders["colour"].to_json()}
    spec |= {"experiment": config.experiments["attention"].to_json()}
    of_sites = {name: stage for site in SITES for name, stage in stages_of_site(site, spec).items()}
    return of_sites | stages_of_cohort(spec)


def stages_of_site(site: str, spec: Mapping[str, str]) -> dict[str, Stage]:
    """The commands of one site; `spec` holds settings as JSON."""
    at = f"results/sites/{site}"
    tables = (f"{at}/slides.csv", f"{at}/tiles/shard0.csv", f"{at}/features/colour/shard0.csv")
    return {
        f"check.{site}": Stage(
            ("check", "--site", site, "--spec", spec["slides"], "--labels", "response", "--out", f"{at}/slides.csv"),
            (f"sites/{site}/slides*",),
        ),
        f"tile.{site}": Stage(
            ("tile", f"{at}/slides.csv", "--spec", spec["tiles"], "--folder", f"{at}/tiles", "--thumbnails", f"{at}/thumbnails",
             "--out", f"{at}/tiles/shard0.csv"),
            (f"sites/{site}/tiles", f"sites/{site}/thumbnails"),
        ),
        f"contact.{site}": Stage(
            ("contact", f"{at}/slides.csv", "--tiles", f"{at}/tiles", "--thumbnails", f"{at}/thumbnails",
             "--out", f"{at}/contact.jpg"),
            (f"sites/{site}/contact.jpg",),
        ),
        f"extract.{site}": Stage(
            ("extract", f"{at}/slides.csv", "--tiles", f"{at}/tiles", "--spec", spec["encoder"],
             "--folder", f"{at}/features/colour", "--out", f"{at}/features/colour/shard0.csv"),
            (f"sites/{site}/features",),
        ),
        f"census.{site}": Stage(("census", *tables, "--out", f"results/census/{site}.csv"), (f"census/{site}.csv",)),
    }  # fmt: skip


def stages_of_cohort(spec: Mapping[str, str]) -> dict[str, Stage]:
    """The commands that read every site's results; `spec` holds settings as JSON."""
    census = tuple(f"results/census/{site}.csv" for site in sorted(SITES))
    bags, run, table = "results/bags/response.csv", "results/runs/attention", "results/predictions/attention.csv"
    made_by = ("--sites", "results/sites", "--encoder")
    stated = ("--experiment", spec["experiment"], "--endpoint", spec["endpoint"])
    return {
        "bag": Stage(
            ("bag", *census, "--slides", spec["slides"], "--spec", spec["endpoint"], *made_by, "colour=colour", "--out", bags,
             "--flow", "results/bags/response.flow.csv"),
            ("bags",),
        ),
        "train": Stage(
            ("train", bags, *made_by, '{"name": "colour"}', "--spec", spec["experiment"], "--endpoint", spec["endpoint"],
             "--folder", run),
            ("runs",),
        ),
        "predict": Stage(
            ("predict", run, "--bags", bags, "--sites", "results/sites", "--out", table),
            ("predictions", "sites/*/attention"),
        ),
        "score": Stage(
            ("score", table, "--inner", f"{run}/inner.csv", "--spec", spec["metrics"], *stated,
             "--out", "results/metrics/attention.csv"),
            ("metrics/attention.csv",),
        ),
        "compare": Stage(
            ("compare", "results", "--spec", spec["metrics"], "--out", "results/metrics/comparisons.csv"),
            ("metrics/comparisons.csv", "metrics/strategies.csv"),
        ),
        "baseline": Stage(
            ("baseline", "results", "--endpoint", "response", "--folder", "results/baselines/response"), ("baselines",)
        ),
        "plot": Stage(("plot", "learning_curves", "--results", "results", "--spec", spec["figures"]), ("figures",)),
        "report": Stage(("report", "results", "--out", "results/report/index.html"), ("report",)),
    }  # fmt: skip


def start(folder: Path, arguments: tuple[str, ...], prepare: Callable[[], object] = lambda: None) -> int:
    """`mil ARGUMENTS` in `folder`, in a process forked from this one, which has imported everything; what it says goes to `said`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream, target in ((0, null), (1, said), (2, said)):
            os.dup2(target, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115  not pytest's
        options.reporters.clear()  # those of commands that this process ran write to streams of its own
        threadpool_limits(
            1
        )  # a pool of threads that this process had does not cross the fork; waiting for it would never end
        sys.dont_write_bytecode = True  # Python before 3.12.8 keeps half a file of it where a limit is met
        prepare()
        sys.argv = ["mil", *arguments]
        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  the process ends here
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # closed on purpose
                stream.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(
    folder: Path, arguments: tuple[str, ...], prepare: Callable[[], object] = lambda: None
) -> tuple[int, list[str]]:
    """Exit code, and the lines that say an error or more than that."""
    (folder / "said").unlink(missing_ok=True)
    code = ended(start(folder, arguments, prepare))
    lines = (folder / "said").read_text(errors="replace").splitlines() if (folder / "said").is_file() else []
    traced = any("Traceback" in line or "HDF5-DIAG" in line for line in lines)
    return code, lines if traced else [line for line in lines if line.startswith("error")]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the results."""
    files = (path for path in (folder / "results").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class Finished:
    """A folder in which every stage has run once, the settings, the SHA-256 of every file, and each stage's seconds."""

    folder: Path
    config: Config
    files: Mapping[str, str]
    seconds: Mapping[str, float]


@functools.cache
def finished() -> Finished:
    """Made once for each process, and removed at its end."""
    folder, parent = Path(tempfile.mkdtemp(prefix="mil-faults-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == parent else None)
    config, seconds = cohort(folder), {}
    (folder / "results").mkdir()
    (folder / "results/config.json").write_text(config.to_json())
    for name, stage in stages(config).items():
        if name in LEFT_OUT:
            continue
        began = time.monotonic()
        code, lines = run(folder, stage.arguments)
        seconds[name] = time.monotonic() - began
        if code:
            raise RuntimeError(f"{name}: {lines or (folder / 'said').read_text()[-2000:]}")
    return Finished(folder, config, digests(folder), seconds)


def trials(
    folder: Path, chosen: Callable[[str], bool] = lambda _: True, repeats: int = REPEATS
) -> Iterator[tuple[str, Stage, Path]]:
    """For each stage (of the sites, the first) a copy of the finished folder without what the stage makes.

    `repeats` times; the baselines, which take as long as all other stages, half as often.
    """
    for name, stage in stages(finished().config).items():
        if name in LEFT_OUT or name.partition(".")[2] not in {"", "north"} or not chosen(name.partition(".")[0]):
            continue
        for repeat in range(max(1, repeats // 2) if name == "baseline" else repeats):
            place = folder / f"{name}{repeat}"
            shutil.copytree(finished().folder, place, symlinks=True)
            removed(stage, place)
            yield name, stage, place
            shutil.rmtree(place, ignore_errors=True)


def removed(stage: Stage, place: Path) -> None:
    """Remove what the stage makes."""
    for pattern in stage.makes:
        for path in (place / "results").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def compared(place: Path) -> str:
    """`equal`, or the first file that differs from the finished folder's."""
    expected, found = finished().files, digests(place)
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"differs: {odd[0]}" if odd else "equal"


def repaired(stage: Stage, place: Path) -> str:
    """The same command again, undisturbed: what `compared` says, or how it failed."""
    code, lines = run(place, stage.arguments)
    return compared(place) if code == 0 else f"again: exit {code} {lines[:1]}"
