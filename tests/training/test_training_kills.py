"""A training process that is killed again and again, at any moment, ends with the very files of one that was not."""

import pytest
from killing import check_whole, hidden, killed, undisturbed
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.progress import quiet
from mil.training import run as run_module
from mil.training.artefact import check_run
from mil.training.checkpoint import Checkpoint
from mil.training.run import train_into

pytestmark = pytest.mark.slow


class EveryRound(Checkpoint):
    """Saves after every round."""

    def save(self, name, number, phase, records):
        self.seconds = 0.0
        super().save(name, number, phase, records)


def trained(strategy, folder):
    """Train with a checkpoint after every round and save the run."""
    run_module.Checkpoint = EveryRound
    rows, store = training_part(*make_cohort())
    sgd = {"optimiser": "sgd"} if strategy == "scaffold" else {}
    training = {"rounds": 10, "local_epochs": 1, "patience": 5, **sgd}
    train_into(folder, experiment(strategy=strategy, training=training), ENDPOINT, rows, store, quiet())


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}


@pytest.mark.repeated
@pytest.mark.parametrize("strategy", ["pooled", "scaffold"])
def test_killed_at_random_moments_the_run_is_the_same(strategy, tmp_path):
    whole = undisturbed(trained, (strategy,), tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    for folder, finished in killed(trained, (strategy,), tmp_path / "killed", whole):
        check_whole(folder)
        if folder.is_dir():
            assert files_of(folder).items() <= expected.items()
        if finished:
            assert files_of(folder) == expected
            assert not hidden(folder)
            assert not (folder / "checkpoint").exists()


def test_a_kill_between_the_last_round_and_the_saved_run_loses_no_round(tmp_path, monkeypatch):
    rows, store = training_part(*make_cohort())
    stanza = experiment(training={"rounds": 2})
    monkeypatch.setattr(run_module, "Checkpoint", EveryRound)
    run_module.train(stanza, ENDPOINT, rows, store, quiet(), tmp_path / "checkpoint")
    resumed = []
    monkeypatch.setattr(EveryRound, "save", lambda self, name, number, phase, records: resumed.append((name, number)))
    train_into(tmp_path, stanza, ENDPOINT, rows, store, quiet())
    assert resumed == []
    assert not (tmp_path / "checkpoint").exists()


def test_a_finished_run_is_taken_where_only_external_sites_changed(tmp_path, monkeypatch):
    """As Snakemake calls it: the outputs are gone. What is damaged, or of other labels, is trained again."""
    rows, store = training_part(*make_cohort())
    stanza = experiment(training={"rounds": 2})
    train_into(tmp_path, stanza, ENDPOINT, rows, store, quiet())
    expected = files_of(tmp_path)
    trained_anew = []
    really = run_module.train
    monkeypatch.setattr(run_module, "train", lambda *given: trained_anew.append(1) or really(*given))

    def again(rows, of=stanza):
        for name in expected:
            (tmp_path / name).unlink(missing_ok=True)
        train_into(tmp_path, of, ENDPOINT, rows, store, quiet())
        return len(trained_anew)

    (tmp_path / "checkpoint").mkdir()  # of a process that was killed after the run was kept
    assert (again(rows), files_of(tmp_path)) == (0, expected)
    assert not (tmp_path / "checkpoint").exists()
    check_run(tmp_path)
    (tmp_path / "finished/models.csv").write_bytes(b"damaged")
    assert (again(rows), files_of(tmp_path)) == (1, expected)
    flipped = rows.assign(label=[1 - int(rows["label"].iloc[0]), *rows["label"].iloc[1:]])
    assert again(flipped) == 2
    assert again(rows, experiment(training={"rounds": 3})) == 3
