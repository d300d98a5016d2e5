"""Results with more patients, whose labels are not known: in the tables only, so that whoever reads their slides fails."""

import os
import shutil
from pathlib import Path

import pandas as pd

from mil.files import write_text
from mil.results.results import Results
from mil.tables import TARGETS, write_table

FURTHER = "zone"
"""A further external site, where no patient has a label."""


def with_more_patients(results: Results, folder: Path) -> Results:
    """A copy of `results` in `folder`: the patients of an external site once more at `FURTHER`, the first of each site there."""
    shutil.copytree(results.folder, folder, copy_function=os.link)
    slides = results.config.slides.model_copy(update={"roles": {**results.config.slides.roles, FURTHER: "external"}})
    (folder / "config.json").unlink()
    write_text(folder / "config.json", results.config.model_copy(update={"slides": slides}).to_json())
    first = results.bags(results.endpoint).drop_duplicates("site")["patient_id"].tolist()
    for path in (*folder.glob("bags/response.csv"), *folder.glob("predictions/*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        blank = table.assign(
            **{name: "" for name in table if name in TARGETS or (name.startswith("repeat") and "slides" in table)}
        )
        there = blank[blank["patient_id"].isin(first)]
        further = blank[blank["site"] == results.external_sites[0]].assign(site=FURTHER)
        more = pd.concat(
            [further.assign(patient_id="y" + further["patient_id"]), there.assign(patient_id="x" + there["patient_id"])]
        )
        more = more.assign(slides=more["patient_id"]) if "slides" in more else more
        write_table(pd.concat([more[::2], table, more[1::2]]), path)
    return Results.open(folder)
