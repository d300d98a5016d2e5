"""A head in a user's file: trained, predicted with and refused like the heads that come with mil."""

import io

import numpy as np
import pytest
import torch
from reference import Course
from test_federation_vectorised import course_like, flat, tasks_of
from training_cohort import ENDPOINT, experiment, make_cohort, training_part

from mil.config import parse
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.models import build
from mil.models.head import Inputs
from mil.predictions.predict import Judge, predict
from mil.progress import Reporter, quiet
from mil.specs.experiments import ExperimentSpec
from mil.statistics.ranking import auroc_of
from mil.strategies import STRATEGIES
from mil.training import engine
from mil.training.artefact import MODEL, Run
from mil.training.cohort import TrainingCohort
from mil.training.run import Trainer, train
from mil.training.store import FeatureStore

BAGS, ARRAYS = make_cohort()
ROWS, STORE = training_part(BAGS, ARRAYS)
EVERYONE = FeatureStore.of(ARRAYS, {"encoder": "e"})
BINARY = build_endpoint(ENDPOINT)
LSE = '''
import torch


class LSE(torch.nn.Module):
    """Log of the mean of exp(r * score) over the tiles (Pinheiro and Collobert 2015), and the tiles' shares in it."""

    def __init__(self, width, outputs, hidden=4, r=1.0, dropout=0.0):
        super().__init__()
        self.embed = torch.nn.Linear(width, hidden)
        self.drop = torch.nn.Dropout(dropout)
        self.score = torch.nn.Linear(hidden, outputs)
        self.r = torch.nn.Parameter(torch.tensor(float(r)))

    def forward(self, tiles):
        scores = self.score(self.drop(torch.relu(self.embed(tiles))))
        pooled = (torch.logsumexp(self.r * scores, dim=0) - torch.log(torch.tensor(float(len(tiles))))) / self.r
        return pooled, torch.softmax(self.r * scores.amax(1), dim=0)
'''
PLAIN = """
import torch


class Head(torch.nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.score = torch.nn.Linear(width, outputs)
        {init}

    def forward(self, tiles):
        scores = self.score(tiles)
        return {answer}
"""


@pytest.fixture
def lse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lse.py").write_text(LSE)
    return "python:lse.py:LSE"


def module_of(source=LSE, name="LSE", width=8, **settings):
    space = {}
    exec(source, space)
    return space[name](width, 1, **settings).eval()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pooled", "fedavg"])
def test_a_users_head_learns_and_predicts_what_a_plain_loop_of_its_module_gives(lse, strategy, tmp_path):
    said = io.StringIO()
    stanza = experiment(model={"name": lse, "hidden": 6}, strategy=strategy)
    run = train(stanza, ENDPOINT, ROWS, STORE, Reporter(stream=said))
    assert "runs the code in lse.py" in said.getvalue()
    run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert loaded.experiment.model == stanza.model
    assert len(stanza.model.file_sha256) == 64
    found = predict(loaded, BAGS, EVERYONE)
    external = found.table[found.table["split"] == "external"].groupby("patient_id").mean(numeric_only=True)
    assert auroc_of(external["score"].to_numpy(), external["label"].to_numpy() == 1) > 0.85
    weights, module = loaded.families[0].weights, module_of(hidden=6)
    names = dict(module.named_parameters())
    attention = {}
    for model in loaded.models.itertuples():
        module.load_state_dict({name: weights[name][model.row] for name in names})
        judged = found.table[(found.table["fold"] == model.fold) & (found.table["trained_on"] == model.trained_on)]
        assert len(judged)
        for row in judged.itertuples():
            mean, deviation = (weights[f"features.{part}"][model.row] for part in ("mean", "deviation"))
            with torch.no_grad():
                logit, share = module((torch.from_numpy(ARRAYS[row.patient_id]) - mean) / deviation)
            assert row.score == pytest.approx(torch.sigmoid(logit).item(), abs=1e-6)
            attention.setdefault(row.patient_id, []).append(share.numpy())
    assert set(attention) == set(ARRAYS)
    for patient, shares in attention.items():
        np.testing.assert_allclose(found.attention[patient], np.mean(shares, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "precision"), [(name, "fp32") for name in sorted(STRATEGIES)] + [("fedavg", "bf16")]
)
def test_every_strategy_takes_a_users_head(lse, strategy, precision):
    sgd = {"optimiser": "sgd", "precision": precision} if strategy == "scaffold" else {"precision": precision}
    short = experiment(model=lse, strategy=strategy, training={"rounds": 1, "local_epochs": 1} | sgd)
    found = predict(train(short, ENDPOINT, ROWS, STORE, quiet()), BAGS, EVERYONE)
    assert np.isfinite(found.table["score"]).all()


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedper"])
def test_the_vectorised_driver_agrees_with_the_plain_one_dropout_included(lse, name):
    training = {"rounds": 2, "local_epochs": 2, "optimiser": "sgd" if name == "scaffold" else "adam", "max_tiles": 9}
    stanza = experiment(model={"name": lse, "dropout": 0.3}, strategy=name, training=training)
    trainer = Trainer(stanza, BINARY, TrainingCohort.of(ROWS, ENDPOINT, BINARY), STORE, quiet())
    tasks = tasks_of(trainer, 2)
    driver, phase, clients = trainer._run(stanza.model, tasks, "inner", "inner")
    vectorised, _ = trainer._engine(stanza.model)
    models = driver.personal(phase, clients)
    for k, task in enumerate(tasks):
        course, start = course_like(trainer, task)
        assert isinstance(course, Course)
        now = course.begin(start)
        for _ in range(2):
            now = course.round(now)
        assert (flat(vectorised, now.state) - phase.rows[k]).abs().max() < 1e-5
        for place, site in enumerate(trainer.cohort.sites):
            assert (flat(vectorised, course.personal(now, site)) - models[k * clients.sites + place]).abs().max() < 1e-5


def test_number_of_threads_changes_no_bit_of_a_users_head(lse, monkeypatch):
    monkeypatch.setattr(engine, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(engine, "CPU_NUMBERS", 2**10)  # several chunks of models
    stanza = experiment(model={"name": lse, "dropout": 0.3}, strategy="fedavg", training={"rounds": 2})
    threads, runs = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            runs.append(train(stanza, ENDPOINT, ROWS, STORE, quiet()))
    finally:
        torch.set_num_threads(threads)
    assert runs[0].models["sha256"].tolist() == runs[1].models["sha256"].tolist()


def test_first_weights_follow_the_models_seed_and_nothing_else(lse):
    head = build(MODEL.validate_python(lse), 8, 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same = (head.initial(np.random.default_rng(3)) for _ in range(2))
    other = head.initial(np.random.default_rng(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["embed.weight"], other["embed.weight"])


def test_covariates_join_a_users_head_and_the_loss_has_its_gradient(lse):
    head = build(MODEL.validate_python(lse), 8, 1, covariates=2)
    weights = {name: torch.from_numpy(value).double().requires_grad_() for name, value in head.initial(np.random.default_rng(0)).items()}  # fmt: skip
    tiles, known = torch.randn(9, 8).double(), torch.randn(2, 2).double()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :4], mask[1, 4:] = True, True
    names = sorted(weights)

    def logits(*values):
        return head(dict(zip(names, values, strict=True)), Inputs(tiles, mask, known, True)).logits

    assert torch.autograd.gradcheck(logits, tuple(weights[name] for name in names), fast_mode=True)


@pytest.mark.parametrize(
    ("init", "answer", "words"),
    [
        ("self.register_buffer('scale', torch.ones(1))", "scores.mean(0)", "'scale' is a buffer of floating-point"),
        ("self.gain = torch.nn.Parameter(torch.ones(1), requires_grad=False)", "scores.mean(0)", "'gain' is a parameter without gradient"),
        ("self.features = torch.nn.Linear(1, 1)", "scores.mean(0)", "'features.weight' has a name that mil uses"),
        ("self.spare = torch.nn.Parameter(torch.ones(1))", "scores.mean(0)", "parameter 'spare' has no effect on the logits"),
        ("", "scores", r"logits of a bag \(64, 8\) must have the shape \(1,\), found \(64, 1\)"),
        ("", "scores.mean(0).item()", r"logits of a bag \(64, 8\) must have the shape \(1,\), found float"),
        ("", "scores.mean(0).detach()", "parameter 'score.weight' has no effect on the logits"),
        ("", "scores.mean(0), torch.full((3,), 1 / 3)", r"attention of a bag \(64, 8\) must have the shape \(64,\), found \(3,\)"),
        ("", "scores.mean(0), torch.full((len(tiles),), 0.5)", "sum to 1 within 0.001; it sums to 32"),
        ("", "scores.mean(0), torch.tensor([2.0, -1.0] + [0.0] * (len(tiles) - 2))", "its least value is -1"),
        ("", "scores.mean(0) * torch.rand(1)", "draws random numbers in prediction"),
        ("", "scores.mean(0) + scores @ scores", "forward fails on a bag"),
        ("raise OSError('no', 'such')", "scores", r"Head\(8, 1\) fails: OSError"),
    ],
)  # fmt: skip
def test_what_a_head_does_wrong_is_one_line_before_training(init, answer, words, tmp_path):
    file = tmp_path / "head.py"
    file.write_text(PLAIN.format(init=init, answer=answer))
    with pytest.raises(MilError, match=words) as refused:
        train(experiment(model=f"python:{file}:Head"), ENDPOINT, ROWS, STORE, quiet())
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"model python:{file}:Head: ")


def test_attention_that_is_wrong_on_some_bags_alone_is_refused_when_these_come(tmp_path):
    file = tmp_path / "head.py"
    file.write_text(PLAIN.format(init="", answer="scores.mean(0), torch.ones(len(tiles)) / max(len(tiles), 4)"))
    head = build(MODEL.validate_python(f"python:{file}:Head"), 8, 1)
    weights = {name: torch.from_numpy(value) for name, value in head.initial(np.random.default_rng(0)).items()}
    assert head(weights, Inputs(torch.zeros(5, 8), torch.ones(1, 5, dtype=torch.bool))).attention.sum() == 1
    with pytest.raises(MilError, match=r"sums to 0\.75"):
        head(weights, Inputs(torch.zeros(3, 8), torch.ones(1, 3, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("python:nowhere.py:LSE", "file nowhere.py of 'python:nowhere.py:LSE' does not exist"),
        ("python:lse.py", "'python:lse.py' names no class; write python:FILE.py:CLASS"),
        ("python:lse.py:", "should match pattern"),
        ("lse.py:LSE", "python:FILE.py:CLASS or a preset"),
    ],
)
def test_what_the_settings_say_wrong_is_said_with_the_settings(lse, model, words):
    stanza = {"encoder": "e", "endpoint": "r", "strategy": "pooled", "model": model}
    with pytest.raises(MilError, match=words) as refused:
        parse(ExperimentSpec, stanza, "config")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("python:lse.py:LES", r"lse.py has no class 'LES'; did you mean 'LSE'\?"),
        ("python:lse.py:torch", "'torch' in lse.py is not a subclass of torch.nn.Module"),
        ({"name": "python:lse.py:LSE", "hiden": 3}, r"LSE\(8, 1, hiden=3\) fails: TypeError: .*'hiden'"),
        ("python:broken.py:LSE", "broken.py cannot be run: SyntaxError"),
    ],
)
def test_a_class_that_cannot_be_made_is_one_line(lse, model, words, tmp_path):
    (tmp_path / "broken.py").write_text("class LSE(\n")
    with pytest.raises(MilError, match=words) as refused:
        build(MODEL.validate_python(model), 8, 1)
    assert "\n" not in str(refused.value)


def test_a_changed_or_lost_file_is_refused_at_prediction(lse, tmp_path):
    train(experiment(model=lse, training={"rounds": 1}), ENDPOINT, ROWS, STORE, quiet()).save(tmp_path / "run")
    (tmp_path / "lse.py").write_text(LSE.replace("torch.relu", "torch.tanh"))
    with pytest.raises(MilError, match="the head's file changed since training"):
        predict(Run.load(tmp_path / "run"), BAGS, EVERYONE)
    (tmp_path / "lse.py").unlink()
    run = Run.load(tmp_path / "run")  # metrics and reports need no file
    with pytest.raises(MilError, match=r"file lse\.py does not exist"):
        Judge(run, BAGS, EVERYONE).scores(run.families[0], run.models)


@pytest.mark.parametrize("model", ["python:elsewhere.py:Head", {"name": "python:elsewhere.py:Head", "r": 2}])
def test_no_hospital_runs_it(model):
    experiment_of_all = {"encoder": "e", "endpoint": "r", "strategy": "fedavg", "model": model}
    with pytest.raises(MilError, match=r"experiment.model: 'python:elsewhere.py:Head' is foreign code"):
        parse(FederationSpec, {"federation": "f", "experiment": experiment_of_all}, "federation.yaml")
