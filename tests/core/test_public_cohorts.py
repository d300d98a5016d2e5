"""Published cohorts from their real tables and small slides under their real names: every label and site is the table's."""

import os
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from mil import cli
from mil.bench.slide import write_slide
from mil.config import Config, load
from mil.errors import MilError
from mil.public_cohorts import COHORTS, build_cohort, cohort_file
from mil.readiness import checked_cohort


def named(folder, names):
    """Small slides with these names."""
    made = folder.parent / f"{folder.name}.tif"
    made.parent.mkdir(parents=True, exist_ok=True)
    write_slide(made, 2048)
    for path in [folder / name for name in names]:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(made, path)


def test_tcga_brca_by_tissue_source_site(shared, in_folder, repository):
    tables = shared / "data/clinical/tcga_brca"
    labels = pd.read_csv(tables / "breast_labels.csv", dtype=str)
    names = [f"{row.patient}-folder/{row.slide}.svs" for row in labels.itertuples()]
    folder = in_folder / "data/tcga_brca"
    named(folder, [*names, "TCGA-A2-A04P-01A-01-TS1.frozen.svs"])
    for name in ("breast_labels.csv", "brca.csv", "tcga-institution-sites.csv"):
        shutil.copy(tables / name, folder)
    paths, slides = build_cohort("tcga_brca", folder)
    sheet, patients = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths[:2])
    assert len(sheet) == len(labels)
    assert slides["BH"] == (labels["site"] == "BH").sum()
    assert set(slides) == {*COHORTS["tcga_brca"].training, "others"}
    joined = patients.set_index("patient_id")["er"]
    stated = (
        labels.drop_duplicates("patient")
        .set_index("patient")["ER_Status_By_IHC"]
        .map({"positive": "1", "negative": "0"})
    )
    assert joined[stated.dropna().index].eq(stated.dropna()).all()
    months = pd.read_csv(tables / "brca.csv").set_index("pid")["T"]
    patient = next(one for one in patients["patient_id"] if one in months.index)
    assert float(patients.set_index("patient_id").loc[patient, "time_months"]) == pytest.approx(
        months[patient] / 30.4375, abs=1e-3
    )
    config = load(repository / "configs/experiments.yaml", paths[2])
    cohort = checked_cohort(config)  # nothing would fail hours later
    assert {spec.column for spec in config.endpoints.values()} >= {"er", "time_months"}
    assert len(cohort.slides) == len(labels)


def test_tcga_brca_as_dicom_of_the_imaging_data_commons(in_folder):
    folder = in_folder / "idc"
    for number, patient in enumerate(("TCGA-BH-A18V", "TCGA-A2-A04P")):
        series = folder / f"tcga_brca/{patient}/1.2.3/SM_1.2.{number}"
        series.mkdir(parents=True)
        for level in range(2):
            (series / f"{level}.dcm").touch()
    (folder / "clinical.tsv").write_text(
        "# cBioPortal\nPATIENT_ID\tSUBTYPE\tOS_STATUS\tOS_MONTHS\tIHC_HER2\n"
        "TCGA-BH-A18V\tBRCA_Basal\t1:DECEASED\t12.5\tEquivocal\nTCGA-A2-A04P\tBRCA_Normal\t0:LIVING\t3\tPositive\n"
    )
    paths, slides = build_cohort("tcga_brca", folder)
    assert slides == {"BH": 1, "A2": 1}
    table = pd.read_csv(paths[1], dtype=str, keep_default_na=False).set_index("patient_id")
    assert list(table.loc["TCGA-BH-A18V", ["pam50", "event", "time_months", "her2"]]) == ["Basal", "1", "12.5", ""]
    assert list(table.loc["TCGA-A2-A04P", ["pam50", "event", "time_months", "her2"]]) == ["", "0", "3.0", "1"]
    assert set(load(paths[2]).endpoints) >= {"her2", "pam50", "survival"}


def test_camelyon17_by_centre(in_folder):
    names = [
        f"patient_{patient:03d}/patient_{patient:03d}_node_{node}.tif"
        for patient in range(0, 100, 7)
        for node in range(5)
    ]
    named(in_folder / "c17", names)
    rows = [f"{name.split('/')[1]},negative" for name in names]
    rows += [f"patient_{patient:03d}.zip,{'pN0' if patient % 2 else 'pN1mi'}" for patient in range(0, 100, 7)]
    (in_folder / "c17/stages.csv").write_text("\n".join(["patient,stage", *rows]) + "\n")
    paths, slides = build_cohort("camelyon17", in_folder / "c17")
    assert slides == {"center_0": 15, "center_1": 15, "center_2": 15, "center_3": 15, "center_4": 15}
    table = pd.read_csv(paths[1], dtype=str).set_index("patient_id")["metastasis"]
    assert all(table[f"patient_{patient:03d}"] == str(1 - patient % 2) for patient in range(0, 100, 7))
    assert load(paths[2]).slides.roles["center_4"] == "external"


def test_transneo_impress_and_yale(shared, in_folder):
    training = pd.read_csv(shared / "data/clinical/transneo/training_df.csv", dtype=str)
    named(in_folder / "neo", [f"{patient}.svs" for patient in training["Trial.ID"]])
    shutil.copy(shared / "data/clinical/transneo/training_df.csv", in_folder / "neo")
    paths, _ = build_cohort("transneo", in_folder / "neo")
    table = pd.read_csv(paths[1], dtype=str, keep_default_na=False).set_index("patient_id")
    said = training.set_index("Trial.ID")
    assert table["pcr"].equals(said["resp.pCR"].reindex(table.index).rename("pcr").fillna(""))
    assert table["her2"].eq(said["HER2.status"].map({"1": "1", "-1": "0"}).reindex(table.index)).all()
    named(in_folder / "impress", ["901_HE.svs", "902_HE.svs", "902_CD8.svs"])
    (in_folder / "impress/labels.csv").write_text("patient_id,pCR,age\n901,1,35\n902,0,62\n")
    paths, slides = build_cohort("impress", in_folder / "impress")
    assert (slides, list(pd.read_csv(paths[1])["pcr"])) == ({"ohio": 2}, [1, 0])
    named(in_folder / "yale", ["Her2Pos_Case_01.svs", "Her2Neg_Case_02.svs"])
    (in_folder / "yale/labels.csv").write_text("patient_id,her2\nHer2Pos_Case_01,positive\nHer2Neg_Case_02,negative\n")
    paths, _ = build_cohort("yale_her2", in_folder / "yale")
    assert list(pd.read_csv(paths[1])["her2"]) == [0, 1]


def test_what_is_missing_is_said_with_where_it_is_had(in_folder):
    done = CliRunner().invoke(cli.app, ["cohort"])
    assert all(name in done.stdout for name in COHORTS)
    (in_folder / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        with pytest.raises(MilError, match=r"portal\.gdc\.cancer\.gov"):
            build_cohort("tcga_brca", in_folder / folder)
    named(in_folder / "bare", ["TCGA-BH-A18V-01Z-00-DX1.x.svs"])
    with pytest.raises(MilError, match="no table with a patient column"):
        build_cohort("tcga_brca", in_folder / "bare")
    with pytest.raises(MilError, match="tcga_brca"):
        build_cohort("tcga-brca", in_folder)


def test_the_file_of_the_checkout_is_what_the_command_writes(repository):
    from pathlib import Path

    sites = [*COHORTS["tcga_brca"].training, "others"]
    columns = [*COHORTS["tcga_brca"].columns]
    text = (repository / "configs/cohorts/tcga_brca.yaml").read_text()
    assert text == cohort_file("tcga_brca", Path("data/tcga_brca"), sites, columns)
    assert isinstance(load(repository / "configs/cohorts/tcga_brca.yaml"), Config)
