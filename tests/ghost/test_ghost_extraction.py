"""Extraction on a simulated CUDA card: no tensor on the wrong device, no wait but the wanted one, memory that runs short."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REAL = torch.version.cuda is not None
NO_CARD = pytest.mark.skipif(
    not (torch.cuda.is_available() if REAL else any(map(shutil.which, ("g++", "c++", "clang++")))),
    reason="the simulated card needs a CPU build of torch and a C++ compiler; a build for CUDA, a card",
)
SIMULATED = pytest.mark.skipif(REAL, reason="nothing makes a real card fail")
pytestmark = [pytest.mark.slow, NO_CARD]
CASES = ("colour", "vit", "convolutions", "macenko", "reinhard")


def run(*arguments):
    script = Path(__file__).with_name("extraction.py")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results():
    return run()


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_cpu_and_the_host_waits_only_for_the_vectors(results, case):
    assert results[case]["difference"] < 2e-3
    assert sum(results[case]["waits"].values()) == 1
    assert next(iter(results[case]["waits"])).startswith("event @ features/engine.py")


@pytest.mark.extended
@pytest.mark.skipif("PAIRWISE" not in os.environ, reason="many minutes of CPU; PAIRWISE=1 runs them")
def test_every_family_precision_and_stain_gives_the_cpus_features():
    found = run("pairwise")
    assert len(found) == 18
    for case, result in found.items():
        # A CPU rounds the pixels that it has resized; the other encoders have random weights, which hardly notice.
        exact = 1e-2 if "efficientnet" in case else 2e-3
        assert result["difference"] < (exact if "fp32" in case else 5e-2), case
        assert sum(result["waits"].values()) == 1, case


@SIMULATED
@pytest.mark.parametrize("failure", ["CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_memory_that_is_short_at_any_allocation_changes_no_feature_and_is_said(results, failure):
    found = results[failure]
    assert found["failed"] > 5
    assert found["silent"] == 0
    assert found["difference"] < 2e-3


@SIMULATED
def test_a_full_card_goes_on_with_smaller_steps_and_says_so(results):
    assert results["full"]["difference"] < 2e-3
    assert any("going on with" in line for line in results["full"]["said"])


@SIMULATED
def test_memory_that_cannot_be_registered_is_said(results):
    assert results["unpinned"]["said"] == [
        "host memory is not pinned (cudaHostRegister: error 2); copies to the GPU are slower"
    ]


def test_steps_are_not_padded_beyond_what_a_slot_of_the_ring_holds(results):
    assert results["step"]["step"] == 85
