"""What a slow line costs a round between hospitals: seconds beside those of a fast one, and beside bytes / bandwidth.

    python benchmarks/network.py [--mb-a-second 1] [--delay-ms 100] [--rounds 5] [--width 64]

Three sites as real processes with mutual TLS, each behind a forward proxy of its own (HTTP CONNECT, as many hospitals
have) that passes on as many bytes a second either way and as late as is said. A round sends 20 models to a site and back.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracles"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deployment import Deployment, free_port
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb-a-second", type=float, default=1.0)
    parser.add_argument("--delay-ms", type=float, default=100.0, help="one way; a round trip takes twice as long")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
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
