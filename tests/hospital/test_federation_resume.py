"""A run that is interrupted after any round and goes on is the run that was not; records and ledger included."""

import pytest
import torch
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.errors import CorruptFile
from mil.progress import quiet
from mil.strategies import STRATEGIES
from mil.training import ledger
from mil.training import run as run_module
from mil.training.checkpoint import Checkpoint
from mil.training.run import train

pytestmark = pytest.mark.slow

EVERY = [
    *sorted(STRATEGIES),
    {"name": "cyclic", "shuffled": True},
    {"name": "fedadam", "like": "adam", "participation": 0.5},
]


class PowerCut(Exception):
    pass


def cut_after(saves):
    """A checkpoint that saves every round and then pulls the plug."""

    class Cut(Checkpoint):
        left = saves

        def save(self, name, number, phase, records):
            self.seconds = 0.0
            super().save(name, number, phase, records)
            self.left -= 1
            if not self.left:
                raise PowerCut

    return Cut


@pytest.mark.parametrize("strategy", EVERY, ids=str)
def test_resuming_at_any_round_equals_no_interruption(strategy, tmp_path, monkeypatch):
    bags, arrays = make_cohort()
    rows, store = training_part(bags, arrays)
    sgd = {"optimiser": "sgd"} if strategy == "scaffold" else {}
    stanza = experiment(strategy=strategy, training={"rounds": 2, "local_epochs": 1, **sgd})
    whole = train(stanza, ENDPOINT, rows, store, quiet())
    cuts = 0
    for saves in range(1, 20):
        folder = tmp_path / str(saves)
        monkeypatch.setattr(run_module, "Checkpoint", cut_after(saves))
        try:
            train(stanza, ENDPOINT, rows, store, quiet(), folder)
            break
        except PowerCut:
            cuts += 1
        monkeypatch.setattr(run_module, "Checkpoint", Checkpoint)
        resumed = train(stanza, ENDPOINT, rows, store, quiet(), folder)
        assert resumed.models.equals(whole.models)
        for name, weight in whole.families[0].weights.items():
            assert torch.equal(resumed.families[0].weights[name], weight)
        assert resumed.ledger.lines == whole.ledger.lines
        assert resumed.rounds.to_csv() == whole.rounds.to_csv()
    assert cuts == 2 + max(whole.models["rounds"])


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path, monkeypatch):
    bags, arrays = make_cohort()
    rows, store = training_part(bags, arrays)
    first = experiment(training={"rounds": 3})
    monkeypatch.setattr(run_module, "Checkpoint", cut_after(2))
    with pytest.raises(PowerCut):
        train(first, ENDPOINT, rows, store, quiet(), tmp_path / "c")
    monkeypatch.setattr(run_module, "Checkpoint", Checkpoint)
    other = experiment(training={"rounds": 3, "seed": 1})
    resumed = train(other, ENDPOINT, rows, store, quiet(), tmp_path / "c")
    assert resumed.models.equals(train(other, ENDPOINT, rows, store, quiet()).models)


def test_altered_ledger_is_found(tmp_path):
    bags, arrays = make_cohort()
    rows, store = training_part(bags, arrays)
    run = train(experiment(model="mean", strategy="fedavg"), ENDPOINT, rows, store, quiet())
    run.save(tmp_path)
    path, lines = tmp_path / "ledger.jsonl", run.ledger.lines
    assert len(ledger.read(path)) == len(lines)
    assert not any(patient in line for line in lines for patient in rows["patient_id"])
    dropped, swapped = lines[:3] + lines[4:], [lines[1], lines[0], *lines[2:]]
    changed = [lines[0].replace('"round": 1', '"round": 2'), *lines[1:]]
    for altered in (dropped, swapped, changed, ["{", *lines]):
        path.write_text("\n".join(altered) + "\n")
        with pytest.raises(CorruptFile, match="the ledger was altered"):
            ledger.read(path)
