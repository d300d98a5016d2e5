"""A training process that is killed again and again, at any moment, ends with the very weights of one that was not."""

import multiprocessing
import signal
import time

import numpy as np
import pytest
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.federation.checkpoint import Checkpoint
from mil.progress import quiet
from mil.training import run as run_module
from mil.training.run import train

PROCESSES = multiprocessing.get_context("forkserver")  # imports torch once, not once a process
PROCESSES.set_forkserver_preload(["mil.training.run", "training_cohort"])


class EveryRound(Checkpoint):
    """Saves after every round."""

    def save(self, name, number, phase, records):
        self.seconds = 0.0
        super().save(name, number, phase, records)


def trained(strategy, folder, checkpoint=None):
    """Train with a checkpoint after every round and save the run."""
    run_module.Checkpoint = EveryRound
    rows, store = training_part(*make_cohort())
    sgd = {"optimiser": "sgd"} if strategy == "scaffold" else {}
    training = {"rounds": 25, "local_epochs": 1, "patience": 10, **sgd}
    train(experiment(strategy=strategy, training=training), ENDPOINT, rows, store, quiet(), checkpoint).save(folder)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed_until_done(strategy, folder, kills, seconds, seed=0):
    """Start, kill -9 after a random time, start again, ...; the last time undisturbed. Kills that met a running process."""
    generator, met = np.random.default_rng(seed), 0
    for number in range(kills + 1):
        process = PROCESSES.Process(target=trained, args=(strategy, folder / "run", folder / "checkpoint"))
        process.start()
        if number < kills:
            time.sleep(generator.uniform(0, seconds))
            process.kill()
        process.join()
        if number < kills:
            met += process.exitcode == -signal.SIGKILL
        else:
            assert process.exitcode == 0
    return met


@pytest.mark.parametrize("strategy", ["pooled", "scaffold"])
def test_killed_at_random_moments_the_run_is_the_same(strategy, tmp_path):
    began = time.monotonic()
    whole = PROCESSES.Process(target=trained, args=(strategy, tmp_path / "whole", tmp_path / "unused"))
    whole.start()
    whole.join()
    undisturbed = time.monotonic() - began
    met = killed_until_done(strategy, tmp_path / "killed", kills=6, seconds=undisturbed / 2)
    assert met > 0
    assert files_of(tmp_path / "killed" / "run") == files_of(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoint").exists()
