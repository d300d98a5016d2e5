"""Snakemake without jobs (dry runs, lint) in a process that has it imported already: less than half the CPU time of a new interpreter."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("snakemake.cli", "snakemake.report.html_reporter", "snakemake.storage", "docutils.core", "yte", "requests"),
        *("snakemake_interface_executor_plugins.registry", "mil.config", "mil.readiness", "mil.workflow.inputs"),
        *("mil.workflow.shards", "mil.workflow.again", "mil.workflow.plan"),
        *("mil.workflow.figures", "mil.workflow.code"),
    ]
)


def without_jobs(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`snakemake ARGUMENTS` in `folder`, which start no job."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = [Path(scratch) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_snakemake, args=(folder, arguments, texts))
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
