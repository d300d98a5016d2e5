"""Folders that a user downloaded -> the sheets and the cohort file of a published cohort: `mil cohort NAME FOLDER`.

Each entry of `COHORTS` says where slides and tables are had, how a file's name states its patient, and which columns of which words become
labels. Tables are found by their columns, so that those of cBioPortal, GDC, TCIA or a paper's supplement all do.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mil.errors import MilError, nearest
from mil.files import require_file, write_text
from mil.tables import write_table

SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".dcm")
TABLES = (".csv", ".tsv", ".txt")
YES_NO = {"positive": "1", "negative": "0", "1": "1", "0": "0", "1.0": "1", "0.0": "0"}
SUBTYPES = {name.lower(): name for name in ("LumA", "LumB", "Basal", "Her2")}
DEAD = {"1:deceased": "1", "0:living": "0", "dead": "1", "alive": "0", "1": "1", "0": "0", "1.0": "1", "0.0": "0"}
PN = {"pn0": "0"} | dict.fromkeys(("pn0(i+)", "pn1mi", "pn1", "pn2"), "1")
IDS = ("patient_id", "patient", "pid", "case", "bcr_patient_barcode", "submitter_id", "trial.id", "id")


@dataclass(frozen=True)
class Column:
    """A column of the patient table: its names in published tables, its words (none: numbers), and what numbers are divided by."""

    names: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    divided_by: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublicCohort:
    """One published cohort."""

    where: str
    licence: str
    size: str
    patient: str
    """Pattern of a patient's id in a slide's path and in the id column of tables."""
    site: Callable[[str], str]
    columns: Mapping[str, Column]
    endpoints: Mapping[str, Mapping[str, Any]]
    training: tuple[str, ...]
    """Sites that train. The others are external; `gathered` gives them one name."""
    gathered: str | None = None
    leave_out: str = r"$^"
    """Pattern of file names that are no slides of the study."""


ER, HER2 = (
    Column(("er_status_by_ihc", "er_status_nature2012", "er.status"), YES_NO),
    Column(("ihc_her2", "her2_status_by_ihc", "her2_final_status_nature2012", "her2.status"), YES_NO),
)
NUMBERED = YES_NO | {"-1": "0"}
COHORTS = {
    "tcga_brca": PublicCohort(
        where="slides: portal.gdc.cancer.gov (TCGA-BRCA, Diagnostic Slide) or imaging.datacommons.cancer.gov (collection tcga_brca, "
        "DICOM); tables: cbioportal.org, studies brca_tcga and brca_tcga_pan_can_atlas_2018 (clinical data)",
        licence="open access, CC BY at the Imaging Data Commons; GDC data policies",
        size="1,134 diagnostic slides of 1,062 patients, about 1 TB",
        patient=r"TCGA-\w\w-\w{4}",
        site=lambda patient: patient.split("-")[1],
        columns={
            "er": ER,
            "her2": HER2,
            "pam50": Column(
                ("subtype", "pam50", "pam50call_rnaseq"),
                SUBTYPES | {f"brca_{key}": name for key, name in SUBTYPES.items()},
            ),
            "time_months": Column(("os_months", "t"), divided_by={"t": 30.4375}),  # FLamby's T is in days
            "event": Column(("os_status", "e"), DEAD),
            "age": Column(("age", "age_at_index")),
        },
        endpoints={
            "her2": {"column": "her2", "folds": 3},
            "er": {"column": "er", "folds": 3},
            "pam50": {
                "kind": "multiclass",
                "column": "pam50",
                "classes": list(SUBTYPES.values()),
                "folds": 2,
                "inner_folds": 2,
            },
            "survival": {"kind": "survival", "column": "time_months", "event": "event", "folds": 3},
        },
        training=("A2", "A8", "AR", "BH", "D8", "E2"),
        gathered="others",
        leave_out=r"TCGA-(?!.*-DX)",
    ),
    "camelyon17": PublicCohort(
        where="slides and stages.csv: camelyon17.grand-challenge.org/Data (GigaScience, AWS registry of open data)",
        licence="CC0",
        size="1,000 slides of 200 patients, 100 of them with labels; with CAMELYON16 about 3 TB",
        patient=r"patient_\d{3}",
        site=lambda patient: f"center_{int(patient[-3:]) % 100 // 20}",
        columns={"metastasis": Column(("stage",), PN)},
        endpoints={"metastasis": {"column": "metastasis", "folds": 3, "inner_folds": 2}},
        training=("center_0", "center_1", "center_2"),
    ),
    "transneo": PublicCohort(
        where="slides: European Genome-phenome Archive, study EGAS00001004582 (a data access agreement); tables: the supplement of "
        "Sammut et al., Nature 2022, or github.com/micrisor/NAT-ML (inputs/)",
        licence="by agreement; the tables are published without a licence",
        size="168 patients before chemotherapy, one hospital",
        patient=r"T\d{3}",
        site=lambda patient: "cambridge",
        columns={
            "pcr": Column(("resp.pcr",), YES_NO),
            "er": Column(ER.names, NUMBERED),
            "her2": Column(HER2.names, NUMBERED),
            "age": Column(("age.at.diagnosis",)),
        },
        endpoints={"pcr": {"column": "pcr"}},
        training=("cambridge",),
    ),
    "impress": PublicCohort(
        where="slides and tables: github.com/huangzhii/IMPRESS (write a table patient_id,pCR,age with the first part of each slide's "
        "name as patient_id: its published tables have no ids)",
        licence="MIT (tables and code)",
        size="126 patients (62 HER2 positive, 64 triple negative), H&E and IHC; one hospital",
        patient=r"(?<![A-Za-z0-9])\d{1,4}(?=[_. -]|$)",
        site=lambda patient: "ohio",
        columns={"pcr": Column(("pcr",), YES_NO), "age": Column(("age",))},
        endpoints={"pcr": {"column": "pcr"}},
        training=("ohio",),
        leave_out=r"(?i)CD8|CD163|PD-?L1",
    ),
    "yale_her2": PublicCohort(
        where="slides: cancerimagingarchive.net, collection HER2-TUMOR-ROIS (write a table patient_id,her2 with the first part of each "
        "slide's name, up to the first dot, as patient_id)",
        licence="CC BY 4.0",
        size="Yale: 192 slides by HER2 status, and 85 by response to trastuzumab; one hospital",
        patient=r"[^/.]+(?=\.svs$)|^[^/.]+$",
        site=lambda patient: "yale",
        columns={"her2": Column(("her2",), YES_NO), "response": Column(("response", "responder"), YES_NO)},
        endpoints={"her2": {"column": "her2"}},
        training=("yale",),
    ),
}


def build_cohort(name: str, folder: Path) -> tuple[list[Path], Counter]:
    """Write `slides.csv`, `patients.csv` and `{name}.yaml` into the folder; their paths, and the number of slides of each site.

    Raises `MilError` where the folder holds no slide of the cohort, or no table with one of its columns.
    """
    if name not in COHORTS:
        raise MilError(f"unknown cohort '{name}'; {nearest(name, COHORTS)}")
    cohort = COHORTS[name]
    if not folder.is_dir():
        raise MilError(f"{folder} is no folder; download first: {cohort.where}")
    slides = _slides(cohort, folder)
    if slides.empty:
        raise MilError(f"{folder}: holds no slide of {name} (names with {cohort.patient}); {cohort.where}")
    patients = _patients(cohort, folder, sorted(slides["patient_id"].unique()))
    if patients.shape[1] == 1:
        wanted = ", ".join(column.names[0] for column in cohort.columns.values())
        raise MilError(f"{folder}: holds no table with a patient column and one of {wanted}; {cohort.where}")
    paths = [folder / "slides.csv", folder / "patients.csv", folder / f"{name}.yaml"]
    write_table(slides, paths[0])
    write_table(patients, paths[1])
    there = [column for column in patients if patients[column].ne("").any()]
    write_text(paths[2], cohort_file(name, folder, sorted(slides["site"].unique()), there))
    return paths, Counter(slides["site"])


def cohort_file(name: str, folder: Path, sites: list[str], columns: list[str]) -> str:
    """The YAML of the cohort: roles of these sites, and the endpoints whose columns there are."""
    cohort = COHORTS[name]
    endpoints = {key: dict(spec) for key, spec in cohort.endpoints.items() if spec["column"] in columns}
    stanza = {"encoder": "effnet", "model": "gated_attention"}
    strategies = ("fedavg", "pooled", "local") if len(set(sites) & set(cohort.training)) > 1 else ("local",)
    experiments = {
        f"{key}_{how}": stanza | {"strategy": how, "endpoint": key} for key in endpoints for how in strategies
    }
    settings = {
        "cohort": name,
        "slides": {
            "sheet": str(folder / "slides.csv"),
            "patients": str(folder / "patients.csv"),
            "roles": {site: "train" if site in cohort.training else "external" for site in sites},
        },
        "endpoints": endpoints,
        "experiments": experiments,
        "run": list(experiments),
    }
    said = f"# Written by `mil cohort {name} {folder}`.\n# {cohort.where}\n# Licence (terms change; check them at the source): {cohort.licence}. Size: {cohort.size}.\n"
    return said + yaml.safe_dump(settings, sort_keys=False, width=120)


def _slides(cohort: PublicCohort, folder: Path) -> pd.DataFrame:
    """A row for each slide file, and for each folder of DICOM files."""
    rows = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SLIDES or re.search(cohort.leave_out, path.name):
            continue
        slide = path.parent if path.suffix.lower() == ".dcm" else path
        below = slide.relative_to(folder).as_posix()
        if matches := list(re.finditer(cohort.patient, below)):
            patient, slide_id = matches[-1][0], slide.name if slide.is_dir() else slide.stem
            site = cohort.site(patient)
            site = site if cohort.gathered is None or site in cohort.training else cohort.gathered
            rows.setdefault(below, {"slide_id": slide_id, "patient_id": patient, "site": site, "path": below})
    table = pd.DataFrame(list(rows.values()), columns=["slide_id", "patient_id", "site", "path"])
    doubled = table[table["slide_id"].duplicated()]
    if len(doubled):
        row = doubled.iloc[0]
        raise MilError(f"{folder / row['path']}: slide '{row['slide_id']}' is there twice; remove one of the two")
    return table


def _patients(cohort: PublicCohort, folder: Path, patients: list[str]) -> pd.DataFrame:
    """One row per patient, '' where no table says it. The first table in alphabetical order that says something holds."""
    table = pd.DataFrame({"patient_id": patients}).set_index("patient_id")
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in TABLES and not path.is_dir()):
        if path.name in ("slides.csv", "patients.csv"):
            continue
        read = pd.read_csv(
            require_file(path, "table", "remove it"),
            sep=None,
            engine="python",
            dtype=str,
            keep_default_na=False,
            comment="#",
        )
        read.columns = [str(column).strip().lower().replace(" ", "_") for column in read.columns]
        ids = next((column for column in IDS if column in read), None)
        if ids is None:
            continue
        read.index = read[ids].str.extract(f"({cohort.patient})", expand=False).fillna("")
        for name, column in cohort.columns.items():
            given = next((header for header in column.names if header in read), None)
            if given is None:
                continue
            values = read[given].str.strip()
            if column.words:
                values = values.str.lower().map(column.words)
            else:
                values = (pd.to_numeric(values, errors="coerce") / column.divided_by.get(given, 1.0)).round(3)
                values = values[values > 0]  # no age and no follow-up is 0
            values = values.dropna().astype(str)
            values = values[~values.index.duplicated()].reindex(table.index)
            table[name] = (
                values if name not in table else table[name].where(table[name].ne("") & table[name].notna(), values)
            )
    return table.fillna("").reset_index()
