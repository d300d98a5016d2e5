"""What each stage takes as a cohort grows: the whole workflow from features alone, 20 sites, two experiments, on this machine.

    python benchmarks/growth.py 500 1000 5000

Features are random numbers in STAMP's layout, 16 tiles of 1,024 numbers for each patient, a part of them moved where the patient responds.
Seconds and peak memory are those of each rule's `benchmark:` file, added up (seconds) or the largest (memory) over its jobs.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SITES, TILES, WIDTH, MPP = 20, 16, 1024, 0.25


def cohort(folder: Path, patients: int) -> None:
    """Features of one slide for each patient, the sheet, the patient table and the config."""
    random = np.random.default_rng(0)
    corners = np.stack([np.arange(TILES) % 4, np.arange(TILES) // 4], axis=1) * 128.0
    slides, people = ["slide_id,patient_id,site,path"], ["patient_id,response,age,grade"]
    for number in range(patients):
        site, response = f"site{number % SITES:02d}", number // SITES % 2
        features = random.normal(size=(TILES, WIDTH)).astype(np.float16)
        features[: TILES // 4, 0] += response
        (folder / "features" / site).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / "features" / site / f"s{number}.h5", "w") as file:
            file["feats"], file["coords"] = features, corners.astype(np.float32)
            file.attrs.update({"extractor": "uni", "unit": "um", "tile_size_um": 128.0, "tile_size_px": 256})
        slides.append(f"s{number},p{number},{site},")
        people.append(f"p{number},{response},{random.integers(30, 80)},{random.integers(1, 4)}")
    (folder / "slides.csv").write_text("\n".join(slides) + "\n")
    (folder / "patients.csv").write_text("\n".join(people) + "\n")
    sites = [f"site{number:02d}" for number in range(SITES)]
    stanza = {"encoder": "uni", "training": {"rounds": 10}}
    settings = {
        "cohort": "growth",
        "slides": {
            "sheet": "slides.csv",
            "patients": "patients.csv",
            "roles": {site: "train" if number < SITES // 2 else "external" for number, site in enumerate(sites)},
            "features": {
                site: {"layout": "stamp", "folder": f"features/{site}", "encoder": "uni", "mpp": MPP} for site in sites
            },
        },
        "encoders": {"uni": {"name": "uni"}},
        "endpoints": {"response": {"repeats": 1}},
        "experiments": dict.fromkeys(("attention_pooled", "attention_fedavg"), stanza),
        "run": ["attention_pooled", "attention_fedavg"],
        "metrics": {"clinical": ["age", "grade"], "subgroups": ["age", "grade", "site"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def run(folder: Path) -> tuple[float, pd.DataFrame]:
    """Wall seconds of the workflow; jobs, seconds and peak MB of each rule."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--configfile", "config.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    paths = list((folder / "results/growth/benchmarks").rglob("*.tsv"))
    rows = pd.concat([pd.read_table(path, na_values="-").assign(rule=path.parent.name) for path in paths])
    table = rows.groupby("rule").agg(jobs=("s", "size"), seconds=("s", "sum"), peak_mb=("max_rss", "max"))
    return time.monotonic() - began, table


def main() -> None:
    for patients in map(int, sys.argv[1:] or ("500", "1000")):
        with tempfile.TemporaryDirectory() as name:
            cohort(Path(name), patients)
            seconds, table = run(Path(name))
            report = sum(path.stat().st_size for path in (Path(name) / "results/growth/report").rglob("*.html")) / 1e6
            print(f"{patients:,} patients, {SITES} sites: {seconds:,.0f} s; pages of the report {report:.1f} MB")
            print(table.sort_values("seconds", ascending=False).round(1).to_string(), flush=True)


if __name__ == "__main__":
    main()
