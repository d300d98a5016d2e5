"""Snakemake's dry runs in a process that has Snakemake imported already: less than half the CPU time of a new interpreter."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["snakemake.cli", "snakemake_interface_executor_plugins.registry", "mil.config"])


def dry_run(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`snakemake --dry-run ARGUMENTS` in `folder`: exit code, and stdout and stderr as text."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = [Path(scratch) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_snakemake, args=(folder, ["--dry-run", *arguments], texts))
        process.start()
        process.join()
        assert process.exitcode is not None
        stdout, stderr = (path.read_text() for path in texts)
    return subprocess.CompletedProcess(["snakemake", *arguments], process.exitcode, stdout, stderr)


def _snakemake(folder: Path, arguments: list[str], texts: list[Path]) -> None:
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main()
