"""Real clinical tables as three sites: response to neoadjuvant chemotherapy, local against pooled against federated.

    python benchmarks/clinical_tables.py ../shared/data/clinical [FOLDER]

Ohio: IMPRESS (TNBC and HER2+). Cambridge: TransNEO. Validation: the hospitals of its two test sets, external here. Age,
grade, nodes and the published lymphocyte measure of each study (standardised within its site and subtype, without labels, since
they are on different scales) are written as a patient table and a cohort file a subtype, and go the way of `mil clinical`. With
FOLDER the tables and cohort files stay there, to be run by hand.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np
import pandas as pd

from mil.baselines.clinical_cohort import ClinicalResults, clinical_cohort, read_patients
from mil.config import Config
from mil.files import write_text
from mil.metrics.score import primary
from mil.statistics import delong
from mil.tables import write_table

SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
ROLES = {"Cambridge": "train", "Ohio": "train", "Validation": "external"}
COLUMNS = ("age", "grade", "nodes", "lymphocytes")
SUBTYPES = {"TNBC": "tnbc", "HER2+": "her2"}
TRAINING = {"rounds": 60, "optimiser": "adamw", "lr": 0.05, "weight_decay": 0.01}


def read_tables(folder: Path) -> pd.DataFrame:
    """patient_id, site, subtype (TNBC, HER2+, ER+/HER2-), response (0/1), age, grade, nodes (0/1), lymphocytes; nan where unknown."""
    return pd.concat([_impress(folder / "impress"), _transneo(folder / "transneo")], ignore_index=True)


def config_of(subtype: str, folder: Path, repeats: int = 5, bootstrap: int = 2000) -> Config:
    """The cohort of one subtype; what `mil clinical FOLDER/tnbc.yaml` reads."""
    trained = {
        f"engine_{strategy}": {
            "encoder": "effnet",
            "endpoint": "response",
            "model": "clinical",
            "strategy": strategy,
            "covariates": list(COLUMNS),
            "training": TRAINING,
        }
        for strategy in ("pooled", "fedavg")
    }
    return Config.model_validate(
        {
            "cohort": SUBTYPES[subtype],
            "slides": {"patients": str(folder / f"{SUBTYPES[subtype]}.csv"), "roles": ROLES},
            "endpoints": {"response": {"folds": 5, "inner_folds": 4, "repeats": repeats}},
            "experiments": trained,
            "run": list(trained),
            "metrics": {"clinical": list(COLUMNS), "annotation": "lymphocytes", "bootstrap": bootstrap},
        }
    )


def patient_table(patients: pd.DataFrame) -> pd.DataFrame:
    """The patients as a table of text, lymphocytes standardised within each site and subtype."""
    table = patients.copy()
    grouped = table.groupby(["site", "subtype"])["lymphocytes"]
    table["lymphocytes"] = (table["lymphocytes"] - grouped.transform("mean")) / grouped.transform("std")
    return table.astype(object).where(table.notna(), "").astype(str)


def run(patients: pd.DataFrame, subtype: str, folder: Path, **settings: int) -> ClinicalResults:
    """Write the subtype's patient table and cohort file into `folder` and evaluate them as `mil clinical` does."""
    config = config_of(subtype, folder, **settings)
    write_table(patient_table(patients[patients["subtype"] == subtype]), folder / f"{SUBTYPES[subtype]}.csv")
    write_text(folder / f"{SUBTYPES[subtype]}.yaml", config.to_json())
    return clinical_cohort(config, "response", read_patients(config))


def single_measures(folder: Path) -> Iterator[tuple[str, str, str, float, float, float, int]]:
    """Study, subtype, measure, AUROC with its interval, patients: measures alone, in the direction that the table states."""
    patients = read_tables(folder)
    for site, subtype, column, up in (
        ("Cambridge", "", "lymphocytes", True),
        ("Cambridge", "TNBC", "lymphocytes", True),
        ("Cambridge", "HER2+", "lymphocytes", True),
        ("Cambridge", "", "age", False),
        ("Cambridge", "", "grade", True),
        ("Cambridge", "", "nodes", False),
        ("Validation", "not HER2+", "lymphocytes", True),
        ("Validation", "HER2+", "lymphocytes", True),
        ("Ohio", "TNBC", "age", False),
        ("Ohio", "TNBC", "lymphocytes", True),
    ):
        chosen = patients[patients["site"] == site].dropna(subset=[column])
        if subtype:
            chosen = chosen[(chosen["subtype"] == subtype.removeprefix("not ")) != subtype.startswith("not ")]
        values = chosen[column] if up else -chosen[column]
        found = delong.logit_interval(chosen["response"].to_numpy(), values.to_numpy(float))
        yield site, subtype or "all", column if up else f"{column}, lower", *found, len(chosen)
    for subtype, table, measure, up in (
        ("TNBC", "pathologists", "CD8-peritumoral (%)", True),
        ("TNBC", "pathologists", "CD8-intratumoral (%)", True),
        ("TNBC", "pathologists", "PD-L1-stroma (%)", True),
        ("TNBC", "IMPRESS", "stroma CD8_proportion", False),
        ("HER2+", "IMPRESS", "lymphocytes CD163_ratio", True),
    ):
        features = pd.read_csv(folder / f"impress/features/{table}/{subtype}.csv", header=[0, 1])
        features.columns = [
            name if table == "pathologists" else f"{region} {name}" for region, name in features.columns
        ]
        response = pd.read_csv(folder / f"impress/clinical/{subtype}.csv", header=[0, 1])["clinical"]["pCR"]
        values = features[measure].to_numpy(float) * (1 if up else -1)
        found = delong.logit_interval(response.to_numpy(int), values)
        yield "Ohio", subtype, f"{table} {measure}" + ("" if up else ", lower"), *found, len(values)


def _impress(folder: Path) -> pd.DataFrame:
    """Both subtypes; rows of the feature tables stand in the order of the clinical ones."""
    parts = []
    for number, subtype in enumerate(("HER2+", "TNBC"), 1):
        clinical = pd.read_csv(folder / f"clinical/{subtype}.csv", header=[0, 1])
        features = pd.read_csv(folder / f"features/IMPRESS/{subtype}.csv", header=[0, 1])
        meta = _sheet(folder / "meta/supp_2_cohort_meta.xlsx", number)
        lymphocytes = features["lymphocytes"]["HE_proportion"].to_numpy(float)
        part = pd.DataFrame(
            {
                "patient_id": [f"IMPRESS-{subtype.strip('+')}-{row:02d}" for row in range(len(clinical))],
                "site": "Ohio",
                "subtype": subtype,
                "response": clinical["clinical"]["pCR"].to_numpy(int),
                "age": clinical["clinical"]["age"].to_numpy(float),
                "lymphocytes": lymphocytes,
            }
        )
        grade = pd.to_numeric(meta.get("Nuclear grade (1-3)", pd.Series(dtype=float)), errors="coerce").to_numpy()
        part["grade"] = grade if len(grade) == len(part) else np.nan
        part["nodes"] = np.nan  # nodes at diagnosis are not in the tables
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _transneo(folder: Path) -> pd.DataFrame:
    parts = []
    for file, site in (
        ("training_df", "Cambridge"),
        ("testing_her2neg_df", "Validation"),
        ("testing_her2pos_df", "Validation"),
    ):
        table = pd.read_csv(folder / f"{file}.csv")
        her2, er = table["HER2.status"] == 1, table["ER.status"] == 1
        parts.append(
            pd.DataFrame(
                {
                    "patient_id": table["Trial.ID"].astype(str),
                    "site": site,
                    "subtype": np.where(her2, "HER2+", np.where(er, "ER+/HER2-", "TNBC")),
                    "response": table["resp.pCR"].astype(int),
                    "age": table["Age.at.diagnosis"].astype(float),
                    "lymphocytes": table["median_lymph_KDE_knn_50"].astype(float),
                    "grade": table["Grade.pre.chemotherapy"].astype(float),
                    "nodes": (table["LN.at.diagnosis"] == 1).astype(float),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _sheet(path: Path, number: int) -> pd.DataFrame:
    """One sheet of an .xlsx as a table of text, its first row the head; a spreadsheet is XML in a zip archive."""
    with ZipFile(path) as archive:
        shared = ["".join(item.itertext()) for item in ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))]
        sheet = ElementTree.fromstring(archive.read(f"xl/worksheets/sheet{number}.xml"))
    rows = []
    for row in sheet.iter(f"{SHEET}row"):
        cells = {}
        for cell in row.iter(f"{SHEET}c"):
            value = cell.find(f"{SHEET}v")
            if value is not None and value.text is not None:
                column = "".join(letter for letter in cell.attrib["r"] if letter.isalpha())
                cells[column] = shared[int(value.text)] if cell.get("t") == "s" else value.text
        rows.append(cells)
    head = rows[0]
    return pd.DataFrame([{name: row.get(column, "") for column, name in head.items()} for row in rows[1:]])


def main(source: Path, folder: Path) -> None:
    patients = read_tables(source)
    print(patients.groupby(["subtype", "site"])["response"].agg(["size", "sum"]).to_string(), end="\n\n")
    for site, subtype, measure, area, low, high, number in single_measures(source):
        print(f"{site:10s} {subtype:9s} {measure:38s} {area:.3f} [{low:.3f}, {high:.3f}] of {number}")
    for subtype in SUBTYPES:
        found = run(patients, subtype, folder)
        print(f"\n{subtype}: AUROC of held-out and external patients (within sites where there are several)")
        shown = primary(found.metrics)
        columns = ["experiment", "trained_on", "split", "site", "patients", "positives", "value", "low", "high"]
        print(shown[columns].round(3).to_string(index=False))
        paired = found.comparisons[found.comparisons["primary"] == 1]
        columns = ["first", "second", "second_trained_on", "site", "difference", "low", "high", "p", "p_adjusted"]
        print(paired[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(sys.argv[1]), Path(made))
