"""What a cohort of 20 sites costs as it grows: planning by slides, and every stage by patients.

    python benchmarks/scale.py plan 1000 10000 100000
    python benchmarks/scale.py stages 250 500 1000 2000 5000 --folder FOLDER

`plan`: CPU time, memory and jobs of `snakemake --dry-run`. The first dry run writes the shards; the second one finds them. Slides are
empty files, the encoders are two that need no download.

`stages`: the whole workflow from features alone: random numbers in STAMP's layout, one slide of 16 tiles x 192 numbers per patient, 10
training and 10 external sites, three experiments (local, pooled, fedavg) of 4 rounds on 3 folds, follow-up and two clinical columns. From each
rule's `benchmark:` files: the number of jobs, their CPU seconds and seconds by the clock (sums), and the largest memory of a job. FOLDER
is kept: a run that was stopped goes on, and a finished one is printed again.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = (
    sys.executable,
    "-m",
    "snakemake",
    "--snakefile",
    str(REPOSITORY / "Snakefile"),
    "--configfile",
    "config.yaml",
)
SITES = [f"site{number:02d}" for number in range(20)]
ROLES = {site: "train" if number < len(SITES) // 2 else "external" for number, site in enumerate(SITES)}
TILES, WIDTH, ROUNDS = 16, 192, 4


def write_slides(folder: Path, slides: int) -> None:
    """An empty file, a row of the sheet and a patient for each slide."""
    (folder / "slides").mkdir()
    rows = ["slide_id,patient_id,site,path,response"]
    for number in range(slides):
        (folder / f"slides/s{number}.svs").touch()
        site = SITES[number % len(SITES)]
        rows.append(f"s{number},p{number},{site},slides/s{number}.svs,{number // len(SITES) % 2}")
    (folder / "sheet.csv").write_text("\n".join(rows) + "\n")
    stanza = {"model": "gated_attention", "strategy": "fedavg", "endpoint": "response"}
    experiments = {name: stanza | {"encoder": name} for name in ("effnet", "colour")}
    write_config(folder, {"sheet": "sheet.csv"}, experiments)


def write_features(folder: Path, patients: int) -> None:
    """Features of a slide for each patient, of which a part is moved where the patient responds, the sheet and the patient table."""
    random = np.random.default_rng(0)
    corners = np.stack([np.arange(TILES) % 4, np.arange(TILES) // 4], axis=1) * 128.0
    slides, people = ["slide_id,patient_id,site,path"], ["patient_id,response,age,grade,months,died"]
    for number in range(patients):
        site, response = SITES[number % len(SITES)], int(random.random() < 0.4)
        features = random.normal(size=(TILES, WIDTH)).astype(np.float16)
        features[: TILES // 4, 0] += response
        (folder / "features" / site).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"features/{site}/s{number}.h5", "w") as file:
            file["feats"], file["coords"] = features, corners.astype(np.float32)
            file.attrs.update({"extractor": "effnet", "unit": "um", "tile_size_um": 128.0, "tile_size_px": 256})
        slides.append(f"s{number},p{number},{site},")
        followed = f"{random.exponential(60) + 1:.1f},{random.integers(0, 2)}"
        people.append(f"p{number},{response},{random.integers(30, 80)},{random.integers(1, 4)},{followed}")
    (folder / "slides.csv").write_text("\n".join(slides) + "\n")
    (folder / "patients.csv").write_text("\n".join(people) + "\n")
    features = {
        site: {"layout": "stamp", "folder": f"features/{site}", "encoder": "effnet", "mpp": 0.25} for site in SITES
    }
    clinical = {"clinical": ["age", "grade"], "subgroups": ["age", "grade", "site"], "time": "months", "event": "died"}
    experiments = {f"attention_{name}": {"training": {"rounds": ROUNDS}} for name in ("local", "pooled", "fedavg")}
    write_config(
        folder, {"sheet": "slides.csv", "patients": "patients.csv", "features": features}, experiments, clinical
    )


def write_config(
    folder: Path, slides: dict[str, Any], experiments: dict[str, Any], metrics: dict[str, Any] | None = None
) -> None:
    settings = {
        "cohort": "scale",
        "slides": slides | {"roles": ROLES},
        "endpoints": {"response": {"repeats": 1, "folds": 3, "inner_folds": 2}},
        "experiments": experiments,
        "run": list(experiments),
        "metrics": metrics or {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def snakemake(folder: Path, *options: str) -> str:
    """What it printed; ends with that where it failed."""
    done = subprocess.run([*SNAKEMAKE, *options], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout + done.stderr


def dry_run(folder: Path) -> tuple[float, float, int]:
    """CPU seconds, peak memory in MB and number of jobs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = snakemake(folder, "--dry-run", "--quiet", "rules")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = next(line for line in said.splitlines() if line.startswith("total "))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss / 1024, int(total.split()[1])


def plan(sizes: list[int]) -> None:
    print(f"{'slides':>8s} {'jobs':>7s} {'CPU s, first':>13s} {'CPU s, second':>14s} {'peak MB so far':>15s}")
    for slides in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_slides(Path(name), slides)
            first, second = dry_run(Path(name)), dry_run(Path(name))
            print(f"{slides:8,d} {first[2]:7,d} {first[0]:13.1f} {second[0]:14.1f} {second[1]:15.0f}", flush=True)


def costs(results: Path) -> pd.DataFrame:
    """Jobs, CPU seconds, seconds by the clock and peak MB of each rule, from its jobs' `benchmark:` files."""
    rows = [
        pd.read_table(path, na_values="-").assign(rule=path.relative_to(results / "benchmarks").parts[0])
        for path in (results / "benchmarks").rglob("*.tsv")
    ]
    rules = pd.concat(rows).groupby("rule")
    return rules.agg(jobs=("s", "size"), cpu_s=("cpu_time", "sum"), clock_s=("s", "sum"), peak_mb=("max_rss", "max"))


def stages(sizes: list[int], folder: Path, until: list[str]) -> None:
    found = {}
    for patients in sizes:
        there = folder / str(patients)
        if not (there / "config.yaml").is_file():
            there.mkdir(parents=True)
            write_features(there, patients)
        snakemake(there, "--cores", "2", "--rerun-incomplete", *(["--until", until] if until else []))
        found[patients] = costs(there / "results/scale")
        if not until:
            page = (there / "results/scale/report/index.html").stat().st_size / 1e6
            print(f"{patients:,} patients: report {page:.1f} MB")
            print(found[patients].sort_values("cpu_s", ascending=False).round(1).to_string(), flush=True)
    for column in ("cpu_s", "peak_mb") if not until else ():
        print(f"\n{column} by patients")
        print(pd.DataFrame({patients: table[column] for patients, table in found.items()}).round(0).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "stages"))
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10000])
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="Where the cohorts of `stages` are.")
    parser.add_argument(
        "--until", nargs="*", default=[], help="Run these rules and those before them, and print nothing."
    )
    given = parser.parse_args()
    if given.what == "plan":
        plan(given.sizes)
    else:
        stages(given.sizes, given.folder.resolve(), given.until)


if __name__ == "__main__":
    main()
