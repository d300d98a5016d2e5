"""Memory of training on a simulated CUDA card: within the stated budget, halved where the card is full, from the host where it must."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_ghost_extraction import NO_CARD, SIMULATED

pytestmark = [pytest.mark.slow, pytest.mark.extended, NO_CARD]

STEP = (
    "OutOfMemoryError @ training/folding.py",
    "OutOfMemoryError @ training/optimisers.py",
    "OutOfMemoryError @ training/learners.py",
)
"""Where a round ends in a line, and goes on from its checkpoint: work on all models at once, for which memory is kept free."""


@pytest.fixture(scope="module")
def results():
    script = Path(__file__).with_name("training_memory.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_head_keeps_within_the_budget_that_the_engine_states(results):
    for name, found in results.items():
        if "peak" in found:
            assert found["peak"] <= found["budget"], name
            assert not [line for line in found["said"] if "too small" in line], name


@SIMULATED
def test_memory_that_is_short_at_any_allocation_changes_no_weight_and_is_said(results):
    found = results["failing"]
    assert found["allocations"] > 100
    assert found["worst"] < 1e-6
    assert found["silent"] == 0
    assert all(line.startswith(STEP) for line in found["ended"]), found["ended"]


def test_a_full_card_goes_on_with_smaller_calls_and_says_so(results):
    assert any("going on with" in line for line in results["full"]["said"])
    assert results["full"]["difference"] < 1e-6


def test_tiles_in_the_hosts_memory_train_the_same_models_without_waits(results):
    assert results["pinned"]["difference"] < 1e-6
    waits = [line.split("@ ")[1].split(":")[0] for line in results["pinned"]["waits"] if not line.endswith("@ test")]
    assert waits == ["training/lessons.py"]
