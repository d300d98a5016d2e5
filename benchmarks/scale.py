"""What it takes to plan a run: CPU time, memory and jobs of `snakemake --dry-run` at 1,000 to 100,000 slides in 20 sites.

    python benchmarks/scale.py 1000 10000 100000

The first dry run writes the shards; the second one finds them. Slides are empty files, the encoders are two that need no download.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SITES = 20


def cohort(folder: Path, slides: int) -> None:
    """An empty file, a row of the sheet and a patient for each slide."""
    (folder / "slides").mkdir()
    rows = ["slide_id,patient_id,site,path,response"]
    for number in range(slides):
        (folder / f"slides/s{number}.svs").touch()
        rows.append(f"s{number},p{number},site{number % SITES:02d},slides/s{number}.svs,{number // SITES % 2}")
    (folder / "sheet.csv").write_text("\n".join(rows) + "\n")
    stanza = {"model": "gated_attention", "strategy": "fedavg", "endpoint": "response"}
    settings = {
        "cohort": "scale",
        "slides": {
            "sheet": "sheet.csv",
            "roles": {f"site{site:02d}": "train" if site < SITES // 2 else "external" for site in range(SITES)},
        },
        "endpoints": {"response": {}},
        "experiments": {name: stanza | {"encoder": name} for name in ("effnet", "colour")},
        "run": ["effnet", "colour"],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def dry_run(folder: Path) -> tuple[float, float, int]:
    """CPU seconds, peak memory in MB and number of jobs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--configfile",
        "config.yaml",
    ]
    done = subprocess.run(
        [*command, "--dry-run", "--quiet", "rules"], cwd=folder, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    total = next(line for line in (done.stdout + done.stderr).splitlines() if line.startswith("total "))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss / 1024, int(total.split()[1])


def main() -> None:
    print(f"{'slides':>8s} {'jobs':>7s} {'CPU s, first':>13s} {'CPU s, second':>14s} {'peak MB so far':>15s}")
    for slides in map(int, sys.argv[1:] or ("1000", "10000")):
        with tempfile.TemporaryDirectory() as name:
            cohort(Path(name), slides)
            first, second = dry_run(Path(name)), dry_run(Path(name))
            print(f"{slides:8,d} {first[2]:7,d} {first[0]:13.1f} {second[0]:14.1f} {second[1]:15.0f}", flush=True)


if __name__ == "__main__":
    main()
