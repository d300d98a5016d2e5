"""A job as a strict compute node runs it: no network, HOME read-only, temporary files on the node's own disk."""

import os
import shutil
import subprocess
import sys

import pytest

from mil.synthetic import make_cohort

pytestmark = pytest.mark.extended

NODE = """
set -euo pipefail
mount -t tmpfs -o ro none home
export HOME=$PWD/home TMPDIR=$PWD/scratch XDG_CACHE_HOME=$PWD/cache
! touch home/file 2> refused.txt
exec "$@"
"""


def test_slides_become_features_without_network_and_home(tmp_path, repository):
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("NOT tested: only root can take the network away and mount HOME read-only (unshare)")
    make_cohort(tmp_path / "data/demo", seed=1, patients_per_site=10)
    for name in ("home", "scratch", "cache"):
        (tmp_path / name).mkdir()
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", repository / "Snakefile", "--cores", "2"]
    settings = ["--configfile", repository / "configs/cohorts/demo.yaml", "--config", "run=[attention_fedavg]"]
    target = "results/demo/sites/west/features/effnet/shard0.csv"
    done = subprocess.run(
        [
            str(word)
            for word in ["unshare", "--mount", "--net", "bash", "-c", NODE, "node", *snakemake, target, *settings]
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("results/demo/sites/west/features/effnet/*.h5"))) >= 8
    assert not list((tmp_path / "home").iterdir())
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]  # nothing is left on the node
