"""Real clinical tables as three sites: response to neoadjuvant chemotherapy, local against pooled against federated.

    python benchmarks/clinical_tables.py ../shared/data/clinical

Ohio: IMPRESS (TNBC and HER2+). Cambridge: TransNEO. Validation: the hospitals of its two test sets, external here. Age,
grade, nodes and the published lymphocyte measure of each study (standardised within its site, since they are on different
scales) go through the same folds, baselines, scores and comparisons as a cohort's clinical columns.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np
import pandas as pd

from mil.bags import deal_folds
from mil.config import EndpointSpec, MetricsSpec
from mil.metrics import delong
from mil.metrics.baselines import run_protocol
from mil.metrics.clinical import clinical_inputs
from mil.metrics.comparison import compare
from mil.metrics.folds import within_folds
from mil.metrics.score import PRIMARY, score

SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
ROLES = {"Cambridge": "train", "Ohio": "train", "Validation": "external"}
COLUMNS = ("age", "grade", "nodes", "lymphocytes")
ENDPOINT = EndpointSpec(column="response", folds=5, inner_folds=4, repeats=5)


def read_patients(folder: Path) -> pd.DataFrame:
    """patient_id, site, subtype (TNBC, HER2+, ER+/HER2-), response (0/1), age, grade, nodes (0/1), lymphocytes; nan where unknown."""
    return pd.concat([_impress(folder / "impress"), _transneo(folder / "transneo")], ignore_index=True)


def bags_of(patients: pd.DataFrame, endpoint: EndpointSpec = ENDPOINT) -> pd.DataFrame:
    """A bag table with folds; one "slide" a patient, since there are none."""
    bags = pd.DataFrame(
        {
            "patient_id": patients["patient_id"],
            "slides": patients["patient_id"],
            "site": patients["site"],
            "role": patients["site"].map(ROLES),
            "label": patients["response"].astype(int),
        }
    )
    return deal_folds(bags.sort_values(["site", "patient_id"], ignore_index=True), endpoint)


def patient_table(patients: pd.DataFrame) -> pd.DataFrame:
    """The patients as a table of text, lymphocytes standardised within each site and subtype."""
    table = patients.copy()
    grouped = table.groupby(["site", "subtype"])["lymphocytes"]
    table["lymphocytes"] = (table["lymphocytes"] - grouped.transform("mean")) / grouped.transform("std")
    return table.astype(object).where(table.notna(), "").astype(str)


def run(
    patients: pd.DataFrame, spec: MetricsSpec, endpoint: EndpointSpec = ENDPOINT
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Metrics, within-fold AUROCs and comparisons of local, pooled and federated logistic regression on one subtype."""
    bags, table = bags_of(patients, endpoint), patient_table(patients)
    folded = [
        run_protocol("clinical", clinical_inputs(table, COLUMNS), bags),
        run_protocol("lymphocytes", clinical_inputs(table, ["lymphocytes"]), bags),
    ]
    predictions = pd.concat([one.predictions for one in folded], ignore_index=True)
    inner = pd.concat([one.inner for one in folded], ignore_index=True)
    by_experiment = dict(list(predictions.groupby("experiment", sort=False)))
    inside = pd.concat([within_folds(part).assign(experiment=name) for name, part in by_experiment.items()])
    clinical = {name: part for name, part in by_experiment.items() if name.startswith("clinical")}
    return score(predictions, spec, None, inner), inside, compare(clinical, spec)


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


def main(folder: Path) -> None:
    patients = read_patients(folder)
    print(patients.groupby(["subtype", "site"])["response"].agg(["size", "sum"]).to_string(), end="\n\n")
    for subtype in ("TNBC", "HER2+"):
        chosen = patients[patients["subtype"] == subtype]
        print(f"{subtype}: single measures, AUROC")
        for (site, column), values in (
            chosen.groupby("site")[["age", "lymphocytes"]].apply(lambda t: t.stack()).groupby(level=[0, 2])
        ):
            part = chosen.loc[values.index.get_level_values(1)]
            area, low, high = delong.logit_interval(part["response"].to_numpy(), values.to_numpy())
            print(f"  {site:10s} {column:12s} {area:.3f} [{low:.3f}, {high:.3f}] of {len(part)}")
        metrics, inside, comparisons = run(chosen, MetricsSpec())
        primary = metrics[(metrics["metric"] == "auroc") & (metrics["method"] == PRIMARY)]
        shown = primary[primary["split"] != "transfer"]
        print(
            shown[["experiment", "trained_on", "site", "patients", "value", "low", "high"]]
            .round(3)
            .to_string(index=False)
        )
        print("within folds:")
        print(
            inside[["experiment", "trained_on", "split", "site", "value", "low", "high"]]
            .round(3)
            .to_string(index=False)
        )
        paired = comparisons[comparisons["method"] == "DeLong, paired"]
        columns = ["first", "second", "second_trained_on", "site", "difference", "low", "high", "p", "p_adjusted"]
        print(paired[columns].round(3).to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
