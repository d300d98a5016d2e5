"""The public interface: light to import, typed, documented, and the same training as the workflow's."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

import mil
from mil.models import HEADS


def test_import_takes_milliseconds_and_the_names_are_there():
    code = "import sys, mil; print(len(sys.modules), sorted(set(sys.modules) & {'numpy', 'torch', 'pydantic', 'typer'}), dir(mil))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[0]) < 150
    assert " [] [" in result.stdout
    for name in dir(mil):
        assert name in result.stdout
        assert getattr(mil, name) is not None
        assert name == "__version__" or getattr(mil, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mil.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["evaluation", "features", "classifier"])
def test_the_examples_of_the_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(f"mil.api.{name}"))
    assert found.attempted
    assert not found.failed


def test_the_examples_of_the_page_hold(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(repository / "docs/api.md"), module_relative=False)
    assert found.attempted > 10
    assert not found.failed


def made(patients, classes=2, seed=0):
    numbers = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), patients // classes)
    bags = [numbers.normal(0, 1, (int(size), 4)) for size in numbers.integers(1, 9, patients)]
    for bag, label in zip(bags, labels, strict=True):
        bag[:, 0] += 2.5 * label
    return bags, labels


def test_it_works_in_cross_val_predict_with_groups():
    bags, labels = made(48)
    sites = np.repeat(["a", "b", "c", "d"], 12)
    classifier = mil.MILClassifier(folds=2, inner_folds=2, rounds=4, lr=0.02)
    assert clone(classifier).get_params() == classifier.get_params()
    scores = cross_val_predict(
        classifier,
        bags,
        labels,
        groups=sites,
        cv=GroupKFold(2),
        params={"groups": sites},
        method="predict_proba",
    )
    assert scores.sum(axis=1) == pytest.approx(np.ones(48))
    value = mil.auroc(labels, scores[:, 1])
    assert value.value == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert value.value > 0.85
    assert value.low < value.value < value.high


def test_a_bags_probability_depends_neither_on_the_other_bags_nor_on_the_order_of_tiles():
    bags, labels = made(24)
    names = np.array(["no", "yes"])[labels]
    fitted = mil.MILClassifier(strategy="pooled", folds=2, rounds=3, lr=0.02).fit(bags, names)
    assert list(fitted.classes_) == ["no", "yes"]
    together = fitted.predict_proba(bags)
    alone = fitted.predict_proba([bags[3][::-1]])
    assert alone[0] == pytest.approx(together[3], abs=1e-5)
    assert set(fitted.predict(bags)) <= {"no", "yes"}
    attention = fitted.attention(bags)
    assert [len(weights) for weights in attention] == [len(bag) for bag in bags]
    assert all(weights.sum() == pytest.approx(1, abs=1e-5) for weights in attention)


def test_three_classes():
    bags, labels = made(36, classes=3)
    fitted = mil.MILClassifier(strategy="pooled", folds=2, rounds=3, lr=0.02).fit(bags, labels)
    scores = fitted.predict_proba(bags)
    assert scores.shape == (36, 3)
    assert scores.sum(axis=1) == pytest.approx(np.ones(36), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": "fedaverage"}, r"strategy: unknown name 'fedaverage'; did you mean 'fedavg'\?"),
        ({"model": "gatedattention"}, r"model: unknown name 'gatedattention'; did you mean 'gated_attention'\?"),
        ({"strategy": "fedavg"}, "'fedavg' is federated and groups are missing; give groups="),
        ({"X": [np.zeros((0, 4))] * 24}, "bag 0 has shape"),
        ({"X": [np.full((2, 4), 1e300)] * 24}, "bag 0 holds NaN, infinity or a number beyond float32"),
        ({"X": [np.full((2, 4), "a")] * 24}, "bag 0 holds <U1"),
        ({"y": np.zeros(24, int)}, "two classes are needed"),
        ({"y": [0.0, 1.0, np.nan] * 8}, "labels hold a missing value at 2"),
        ({"y": [None, 1] * 12}, "labels hold a missing value at 0"),
        ({"y": [0, "1"] * 12}, "labels are of several types"),
        ({"y": np.array([True, "yes"] * 12, object)}, "labels are of several types"),
        ({"y": np.linspace(0, 1, 24)}, "label 0.0434783 is not a class"),
        ({"y": np.arange(24)}, "24 of 24 classes have 1 patient"),
        ({"groups": [np.nan] * 24}, "groups hold a missing value at 0"),
        ({"groups": ["a"] * 3}, "give one of each per patient"),
        ({"folds": 50}, "site all"),
        ({"training": {"lrr": 1}}, "lrr"),
    ],
)
def test_mistakes_are_said(change, said):
    bags, labels = made(24)
    given = {"X": bags, "y": labels} | {key: change.pop(key) for key in ("X", "y", "groups") if key in change}
    with pytest.raises(mil.MilError, match=said):
        mil.MILClassifier(**{"folds": 2, "rounds": 2, "strategy": "pooled"} | change).fit(**given)


def test_a_fit_that_ends_with_an_error_leaves_the_model_before_as_it_was():
    bags, labels = made(24)
    fitted = mil.MILClassifier(strategy="pooled", folds=2, rounds=2).fit(bags, labels)
    before = fitted.predict(bags).tolist()
    with pytest.raises(mil.MilError, match="too few"):
        fitted.fit(bags, ["x"] * 23 + ["y"])
    assert (list(fitted.classes_), fitted.predict(bags).tolist()) == ([0, 1], before)


def test_the_glossary_lists_every_head():
    text = (Path(__file__).parents[2] / "docs/glossary.md").read_text(encoding="utf-8")
    listed = next(line for line in text.splitlines() if line.startswith("| head, model"))
    assert {name for name in HEADS if f"`{name}`" not in listed} == set()


def test_a_model_that_is_not_fitted_says_so():
    with pytest.raises(NotFittedError, match="call fit first"):
        mil.MILClassifier().predict(made(2)[0])


@pytest.mark.parametrize(
    ("features", "coords", "tile_mpp", "said"),
    [
        (np.zeros((3, 4), np.float32), np.full((3, 2), 0.5), 0.5, "not whole"),
        (np.zeros((3, 4), int), np.zeros((3, 2), int), 0.5, "features are int64"),
        (np.zeros((3, 4), np.float32), np.zeros((3, 2), int), float("nan"), "must be above 0"),
    ],
)
def test_a_feature_file_that_would_say_something_else_is_not_written(tmp_path, features, coords, tile_mpp, said):
    with pytest.raises(mil.MilError, match=said):
        mil.write_features(tmp_path / "a.h5", features, coords, encoder="x", size_px=224, tile_mpp=tile_mpp)
    assert not list(tmp_path.iterdir())


def test_a_region_without_a_pixel_and_a_scale_that_is_none_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(32, 32))
    with pytest.raises(mil.MilError, match="not above 0"), mil.open_slide(path, float("nan")):
        pass
    with mil.open_slide(path, 0.5) as slide:
        for area in ((0, 0, -10, 10, 0.5), (0, 0, 10, 10, 0), (float("nan"), 0, 10, 10, 0.5)):
            with pytest.raises(mil.MilError, match="has no pixel"):
                mil.read_microns(slide, *area)
        with pytest.raises(mil.MilError, match="is refused"):
            mil.read_microns(slide, 0, 0, 30, 30, 1e-4)
        with pytest.raises(mil.MilError, match="levels are 0 to 0"):
            slide.read_region(0, 0, 3, 8, 8)
