"""Training on a simulated CUDA card: no tensor on the wrong device, the CPU's weights, and no wait within a round."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_ghost_extraction import NO_CARD

pytestmark = [pytest.mark.slow, NO_CARD]
SCRIPT = Path(__file__).with_name("training.py")
STEP = (
    "card.py",
    "pairs.py",
    "reach.py",
    "folding.py",
    "fitting.py",
    "models/",
    "optimisers.py",
    "endpoints/",
    "engine.py",
)
"""Files of which a step is made. `card.py` waits in `logits` alone, once after a round."""


FEW = ("gated_attention, bf16", "strategy scaffold", "covariates, dsmil", "max_tiles", "max_tiles, more steps", "auto")
"""In `make test`; all others in `make test-all`."""


PAIRWISE = pytest.mark.skipif("PAIRWISE" not in os.environ, reason="many minutes of CPU; PAIRWISE=1 runs them")
LONG = [
    pytest.param(("without", *FEW), marks=pytest.mark.extended),
    pytest.param(("pairwise",), marks=[pytest.mark.extended, PAIRWISE]),
]


@pytest.fixture(scope="module", params=[FEW, *LONG], ids=["few", "others", "pairwise"])
def results(request):
    command = [sys.executable, SCRIPT, *request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_head_setting_strategy_and_endpoint_trains_the_cpus_weights(results):
    failed = {name: found["error"] for name, found in results.items() if "error" in found}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    far = {name: found["difference"] for name, found in results.items() if not found["difference"] < found["tolerance"]}
    assert not far


def test_a_step_waits_for_nothing(results):
    for name, found in results.items():
        waits = {line: count for line, count in found["waits"].items() if any(part in line for part in STEP)}
        assert sum(waits.values()) <= 4, (name, waits)  # one per round: two of the selection, at most two of the refit


@pytest.mark.parametrize("name", ["gated_attention, fp32", "transmil, fp32", "survival", "max_tiles"])
def test_more_steps_are_no_more_waits(results, name):
    if f"{name.removesuffix(', fp32')}, more steps" not in results:
        pytest.skip("of other cases")
    more = results[f"{name.removesuffix(', fp32')}, more steps"]
    rounds = [line for line in more["waits"] if "lessons.py" in line]
    assert more["waits"][rounds[0]] <= 4


def test_the_run_says_what_it_was_computed_on(results):
    if "auto" not in results:
        pytest.skip("of other cases")
    assert results["auto"]["computed"] == {"device": "cuda", "precision": "bf16"}
