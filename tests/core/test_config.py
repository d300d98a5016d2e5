"""Specs refuse what they do not know, in one line, and the generated files agree with the code."""

import json

import pytest

from mil.commands.options import read_config
from mil.config import Config, SlidesSpec, TileSpec, load, merge, parse, read_spec
from mil.errors import MilError
from mil.scaffold import default_yaml, schema_json, write_cohort

STANZA = {"encoder": "effnet", "endpoint": "response", "model": "mean", "strategy": "local"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tiles": {"siez_px": 3}}, "unknown key 'tiles.siez_px'; did you mean 'size_px'?"),
        ({"experimets": {}}, "unknown key 'experimets'; did you mean 'experiments'?"),
        ({"tiles": {"size_px": "big"}}, "tiles.size_px: 'big' is refused"),
        ({"tiles": {"mpp": True}}, "tiles: mpp: yes is no number"),
        ({"tiles": {"mpp": "1_0e-1"}}, "tiles: mpp: '1_0e-1' is no number in plain decimal digits"),
        ({"tiles": {"size_px": "0128"}}, "tiles: size_px: '0128' is no number"),
        ({"encoders": {"e": {"name": "timm:x", "std": [0.5, "0_5", 0.5]}}}, "std: '0_5' is no number"),
        ({"slides": {"roles": {"North": "train", "north": "train"}}}, "'north' and 'North' differ by case alone"),
        ({"slides": {"roles": {"Ensemble": "train"}}}, "'Ensemble' is a name of the pipeline's own results"),
        ({"endpoints": {"response.flow": {}}}, "'response.flow' is a name of the pipeline's own results"),
        (
            {
                "experiments": {
                    "comparisons": {
                        "encoder": "c",
                        "endpoint": "response",
                        "model": {"name": "mean"},
                        "strategy": "pooled",
                    }
                }
            },
            "experiments: 'comparisons' is a name of the pipeline's own results",
        ),
        ({"metrics": {"clinical": ["age", "age"]}}, "metrics: clinical names 'age' twice"),
        ({"metrics": {"subgroups": ["age", "age"]}}, "metrics: subgroups names 'age' twice"),
        ({"tiles": {"version": 99}}, "tiles.version: 99 is refused"),
        ({"slides": {"roles": {"A": "trian"}}}, "slides.roles.A: 'trian' is refused"),
        ({"truth": {}}, "truth: give either table (with square_um) or masks (with mask_mpp)"),
        ({"run": ["a", "a"], "experiments": {"a": STANZA}}, "run names 'a' twice"),
        ({"figures": {"reviews": ["r.csv", "r.csv"]}}, "figures.reviews names 'r.csv' twice"),
        ({"run": ["x"]}, "run: unknown experiment 'x'; known: none"),
        ({"run": ["a"], "experiments": {"a": STANZA | {"encoder": "efnet"}}}, "did you mean 'effnet'?"),
        ({"run": ["a"], "experiments": {"a": STANZA | {"endpoint": "respons"}}}, "did you mean 'response'?"),
        ({"experiments": {"a": STANZA | {"model": {"name": "gated_attention", "hiden": 3}}}}, "did you mean 'hidden'?"),
        ({"experiments": {"a": {"encoder": "effnet"}}}, "is missing"),
        ({"endpoints": {"r": {"column": "patient_id"}}}, "column patient_id says who the patient is"),
        ({"encoders": {"../x": {}}}, "cannot be part of a file name"),
        ({"cohort": "../mine"}, "cohort: '../mine' cannot be part of a file name"),
        ({"results": "runs/{cohort}"}, "results: 'runs/{cohort}' is no folder's path"),
        ({"results": ""}, "results: '' is no folder's path"),
        ({"run": "attention_pooled"}, "run: 'attention_pooled' is refused (input should be a list, as in [a, b])"),
        ({"slides": {"roles": ["A"]}}, "input should be a mapping of keys to values"),
        (
            {"endpoints": {"r": {"positive": [1]}}},
            "positive.0: 1 is refused (input should be a valid string; write it in quotes: '1')",
        ),
        (
            {"endpoints": {"r": {"positive": ["1", "2"], "negative": ["2"]}}},
            "endpoints.r: '2' is both positive and negative",
        ),
        ({"endpoints": {"r": {"negative": []}}}, "endpoints.r: negative needs the values of the column"),
        ({"experiments": {"a": STANZA | {"training": {"lr": float("inf")}}}}, "lr: inf is refused"),
        ({"metrics": {"decision_thresholds": [20]}}, "metrics.decision_thresholds.0: 20 is refused"),
    ],
)
def test_a_fault_is_one_line_that_names_the_key_and_the_way_out(config, said):
    with pytest.raises(MilError) as caught:
        parse(Config, config, "cohort.yaml")
    assert str(caught.value).startswith("cohort.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_generated_files_agree_with_the_code(repository):
    assert (repository / "configs/default.yaml").read_text() == default_yaml(), "run `mil config write`"
    assert (repository / "configs/schema.json").read_text() == schema_json(), "run `mil config write`"


def test_the_defaults_file_is_the_defaults(repository):
    assert load(repository / "configs/default.yaml") == Config()


@pytest.mark.parametrize("name", ["demo", "idc"])
def test_cohort_files_are_valid_and_run_known_experiments(repository, name):
    config = load(
        *(repository / "configs" / file for file in ("default.yaml", "experiments.yaml", f"cohorts/{name}.yaml"))
    )
    assert config.cohort == name
    assert list(config.selected()) == list(config.run)


def test_merge_lays_mappings_over_one_another_and_replaces_the_rest():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": 4}) == {"a": {"b": 1, "c": [3]}, "d": 4}


def test_spec_from_text_or_file(tmp_path):
    file = tmp_path / "tiles.yaml"
    file.write_text("mpp: 1.0\n")
    assert read_spec(TileSpec, '{"mpp": 1.0}') == read_spec(TileSpec, str(file)) == TileSpec(mpp=1.0)
    assert read_spec(TileSpec, TileSpec(mpp=0.25).to_json()).mpp == 0.25


def test_spec_from_a_part_of_a_file(tmp_path):
    file = tmp_path / "cohort: mine.yaml"
    file.write_text("tiles: {mpp: 1.0}\nmpp: 2.0\n")
    assert read_spec(TileSpec, f"{file}:tiles") == TileSpec(mpp=1.0)
    for part in ("slides", "mpp", "tiles.mpp", "tiles.tissue"):
        with pytest.raises(MilError, match=f"has no part '{part}'"):
            read_spec(TileSpec, f"{file}:{part}")


@pytest.mark.parametrize("text", ['{"mpp": ', "missing.yaml", '{"mpp": -1}'])
def test_unreadable_spec_is_said(in_folder, text):
    with pytest.raises(MilError):
        read_spec(TileSpec, text)


def test_yaml_that_is_not_a_mapping_is_said(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(MilError, match="must be a mapping"):
        load(file)


def test_json_of_a_spec_is_canonical():
    keys = list(json.loads(SlidesSpec().to_json()))
    assert keys == sorted(keys)


@pytest.mark.parametrize("name", ["mine", "no", "2024"])
def test_init_writes_a_cohort_that_loads_and_never_overwrites(in_folder, repository, name):
    written = write_cohort(name, in_folder / "data")
    assert all(path.exists() for path in written)
    config = load(
        repository / "configs/default.yaml", repository / "configs/experiments.yaml", f"configs/cohorts/{name}.yaml"
    )
    assert config.cohort == name
    assert read_config(written[:1]) == config  # the experiments beside the workflow, from any folder
    with pytest.raises(MilError, match="exists already"):
        write_cohort(name, in_folder / "data")


def test_a_part_of_a_default_keeps_the_rest_of_it(tmp_path):
    """`encoders: {colour: {stain: macenko}}` is the encoder colour with a stain, not the default encoder."""
    path = tmp_path / "cohort.yaml"
    path.write_text("encoders: {colour: {stain: macenko}}\nendpoints: {response: {folds: 3}}\n")
    config = load(path)
    assert (config.encoders["colour"].name, config.encoders["colour"].stain) == ("colour", "macenko")
    assert config.endpoints["response"].column == Config().endpoints["response"].column
    assert load() == Config()
