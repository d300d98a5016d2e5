"""What a slow, a lossy and a cut line cost a round between hospitals: seconds beside those of a fast one, and beside bytes / bandwidth.

    python benchmarks/network.py [--mb-a-second 1] [--delay-ms 100] [--rounds 5] [--width 64]
    python benchmarks/network.py --cut-s 60 --loss 0.05     # in place of the slow lines

Three sites as real processes with mutual TLS, each behind a forward proxy of its own (HTTP CONNECT, as many hospitals
have) that passes on as many bytes a second either way and as late as is said. A round sends 20 models to a site and back.

`--cut-s`: A's line lets nothing through for so long in mid-round; `--loss`: this share of packets of all lines is lost, and 200 ms pass
until one is sent again. The proxy stands in for the network's own loss: it holds back the bytes, TCP's congestion control sees nothing.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracles"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deployment import Deployment, free_port, until
from federation import ROOT, SITES, bytes_a_round, make, seconds_a_round
from hospitals import Hospitals
from slow_line import SlowLine

from mil.hospital import coordinator as hospital
from mil.progress import quiet
from mil.training.ledger import read


def run(hospitals: Hospitals, name: str, lines: Mapping[str, SlowLine]) -> tuple[float, int, int]:
    """Seconds a round, bytes of the whole run over all lines, and those of them that are messages by the sites' ledgers."""
    carried = {site: line.up.carried + line.down.carried for site, line in lines.items()}
    hospital.run(hospitals.server, name, quiet(), 120, rehearse=False)
    ledgers = [Path(hospitals.site(site).workspace) / "ledger.jsonl" for site in SITES]
    server = Path(hospitals.server.workspace) / "runs" / name / "ledger.jsonl"
    carried = sum(line.up.carried + line.down.carried - carried[site] for site, line in lines.items())
    told = [entry for path in ledgers for entry in read(path) if entry.get("run") == name]
    messages = sum(entry.get("bytes_received", 0) + entry.get("bytes_sent", 0) for entry in told)
    return seconds_a_round(server, ledgers)[0], carried, messages


def cut(hospitals: Hospitals, deployment: Deployment, name: str, line: SlowLine, seconds: float) -> float:
    """Seconds of a run; for `seconds` of it, from the middle of its second round on, A's line is cut."""
    began = time.monotonic()
    done = threading.Thread(target=hospital.run, args=(hospitals.server, name, quiet(), 600, False))
    done.start()
    if seconds:
        until(lambda: len(deployment.answered(name)) >= 1, 300, "the first round")
        time.sleep(0.5)
        line.cut()
        time.sleep(seconds)
        line.mend()
    done.join()
    return time.monotonic() - began


def disturbed(
    hospitals: Hospitals, deployment: Deployment, lines: Mapping[str, SlowLine], cut_s: float, loss: float
) -> None:
    """Print what a cut and lost packets cost a whole run."""
    print("| | s a run | jobs | rounds that were asked again | models |")
    print("|---|---|---|---|---|")

    def row(words: str, name: str, seconds: float) -> None:
        entries = deployment.ledger(name)
        jobs = sum(entry["event"] in {"started", "resumed"} for entry in entries)
        again = sum(entry["event"] in {"waiting", "lost"} for entry in entries)
        last = [entry for entry in entries if entry["event"] == "answered"][-1]
        print(f"| {words} | {seconds:.0f} | {jobs} | {again} | {last['global_sha256'][:8]} |", flush=True)

    row("undisturbed", "whole", cut(hospitals, deployment, "whole", lines["A"], 0.0))
    if cut_s:
        row(f"A's line cut for {cut_s:g} s", "cut", cut(hospitals, deployment, "cut", lines["A"], cut_s))
    if loss:
        for line in lines.values():
            line.up.loss = line.down.loss = loss
        row(f"{loss:.0%} of packets lost", "lossy", cut(hospitals, deployment, "lossy", lines["A"], 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb-a-second", type=float, default=1.0)
    parser.add_argument("--delay-ms", type=float, default=100.0, help="one way; a round trip takes twice as long")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--cut-s", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        os.environ["HOME"] = temporary
        hospitals = make(Path(temporary) / "federation", free_port(), options.width, 50, options.rounds)
        lines = {site: stack.enter_context(SlowLine()) for site in SITES}
        deployment = Deployment(hospitals, {site: line.environment for site, line in lines.items()})
        stack.callback(deployment.stop)
        deployment.provision()
        deployment.start("server", *SITES)
        deployment.wait_for(*SITES)
        if options.cut_s or options.loss:
            disturbed(hospitals, deployment, lines, options.cut_s, options.loss)
            return
        fast, *_ = run(hospitals, "fast", lines)
        for line in lines.values():
            line.limit(options.mb_a_second * 1e6, options.delay_ms / 1000)
        slow, carried, messages = run(hospitals, "slow", lines)
        received, sent = bytes_a_round(Path(hospitals.site("A").workspace) / "ledger.jsonl", "slow")
    over = (received + sent) / 1e6 / options.mb_a_second
    rate, delay = options.mb_a_second, options.delay_ms
    print(f"a round of 3 sites, {received / 1e6:.2f} MB to each and {sent / 1e6:.2f} MB back:")
    print(f"  seconds, lines as fast as the machine         {fast:7.2f}")
    print(f"  seconds, {rate:g} MB/s and {2 * delay:g} ms there and back      {slow:7.2f}")
    print(f"  seconds, bytes / bandwidth                    {over:7.2f}")
    print(f"  bytes on the lines / bytes of messages        {carried / messages:7.2f}")


if __name__ == "__main__":
    main()
