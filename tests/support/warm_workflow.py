"""Snakemake's real runs whose jobs' `mil` has everything imported: each is a forked process of its own, without the seconds of imports.

The program `mil` of a job hands its arguments, folder, environment and streams to a process that forks for it and waits for the
exit code. For tests of what jobs run and write; that `mil` starts as a program is the matter of other tests.
"""

import atexit
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    *("snakemake.cli", "torch", "mil.cli", "mil.slides.check", "mil.tiles.contact", "mil.features.shard", "mil.training.run"),
    *("mil.predictions.attention", "mil.metrics.comparison", "mil.metrics.localisation", "mil.baselines.write"),
    *("mil.leaks.deep_check", "mil.figures", "mil.report.build", "mil.report.crate"),
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect({address!r})
order = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(line, [json.dumps(order).encode()], [0, 1, 2])
sys.exit(int(line.recv(16) or b"1"))
"""
LONGEST = 2**20  # bytes of an order


def run_workflow(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """`snakemake WORDS` in `folder`: exit code, and stdout and stderr as text."""
    command = [sys.executable, __file__, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main() -> None:
    """`snakemake` with the arguments of this process."""
    os.fsync = lambda _: None  # as in tests/conftest.py
    for module in IMPORTED:
        importlib.import_module(module)
    scratch = tempfile.mkdtemp()  # no TemporaryDirectory: the end of a forked process would remove it
    client = Path(scratch, "mil")
    client.write_text(CLIENT.format(python=os.path.realpath(sys.executable), address=f"{scratch}/line"))
    client.chmod(0o755)
    Path(scratch, "python").symlink_to(sys.executable)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{scratch}/line")
    listener.listen()
    server = os.fork()
    if not server:
        serve(listener)
    try:
        sys.executable = f"{scratch}/python"  # the workflow calls the `mil` beside it
        sys.argv[0] = "snakemake"
        importlib.import_module("snakemake.cli").main()
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
        shutil.rmtree(scratch)


def serve(listener: socket.socket) -> NoReturn:
    """Fork for each order until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: [reap(), os._exit(0)])
    while True:
        line, _ = listener.accept()
        message, streams, _, _ = socket.recv_fds(line, LONGEST, 3)
        if not os.fork():
            listener.close()
            work(line, json.loads(message), streams)
        for number in (line.detach(), *streams):
            os.close(number)
        reap()


def reap() -> None:
    """Ask for the exit codes of the jobs that have ended, so that their CPU time counts as this process's."""
    with suppress(ChildProcessError):  # none is left
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def work(line: socket.socket, order: dict, streams: list[int]) -> NoReturn:
    """Run `mil` as the order says, and answer with its exit code."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = ["mil", *order["arguments"]]
        importlib.import_module("mil.cli").main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  the process ends here
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    line.send(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
