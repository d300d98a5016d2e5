"""Processes that fork from one that has the slow imports done: no seconds of imports for each.

Python has one such server for each process, so the modules that any test wants of it stand here together.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("snakemake.cli", "snakemake.report.html_reporter", "snakemake.storage", "docutils.core", "yte", "requests"),
        *("snakemake_interface_executor_plugins.registry", "mil.config", "mil.readiness", "mil.workflow.inputs"),
        *("mil.workflow.shards", "mil.workflow.again", "mil.workflow.plan"),
        *("mil.workflow.figures", "mil.workflow.code", "mil.training.run", "mil.hospital.site", "mil.hospital.server"),
        *("nvflare.cli",),
    ]
)


def run_main(module: str, words: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`main()` of a module in `folder`, as if called by the command line with `words`."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = [Path(scratch) / name for name in ("stdout", "stderr")]
        process = PROCESSES.Process(target=_main, args=(module, words, folder, texts))
        process.start()
        process.join()
        assert process.exitcode is not None
        stdout, stderr = (path.read_text() for path in texts)
    return subprocess.CompletedProcess([module, *words], process.exitcode, stdout, stderr)


def _main(module: str, words: list[str], folder: Path | None, texts: list[Path]) -> None:
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    if folder:
        os.chdir(folder)
    sys.argv = [module, *words]
    importlib.import_module(module).main()
