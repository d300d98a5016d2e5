"""What may change in the folder of the workflow's tests between two runs: a slide, a label, a file that is deleted.

The folder is a copy whose files are linked to those of the finished run: a file is removed before another one takes its name.
"""

import os
import shutil

import pandas as pd
import pytest


def copied(finished, folder, record):
    """The finished folder with hard links for its files; Snakemake's `record` of what it did is copied, since it writes into these files."""
    shutil.copytree(finished, folder, copy_function=os.link, ignore=shutil.ignore_patterns(".snakemake"))
    if record:
        shutil.copytree(finished / ".snakemake", folder / ".snakemake")
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.unlink()  # the file is linked, not copied
    path.write_text(text.replace(old, new, 1))


def first_slide(folder, site="north"):
    """Row of the site's first slide in a shard, and the path of its file."""
    header, *rows = (folder / f"results/tiny/sites/{site}/shards/0.csv").read_text().splitlines()
    row = dict(zip(header.split(","), rows[0].split(","), strict=True))
    return row, folder / row["path"]


def add_slide(folder):
    row, path = first_slide(folder)
    shutil.copy(path, folder / "data/copy.svs")
    sheet = folder / "data/slides.csv"
    edit(sheet, "\n", f"\nnew-slide,{row['patient_id']},north,copy.svs,\n")


def replace_slide(folder):
    _, path = first_slide(folder)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"\0")


def touch_slide(folder):
    _, path = first_slide(folder)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def change_label(folder):
    rows = (folder / "data/patients.csv").read_text().splitlines()
    place = rows[0].split(",").index("response")
    cells = next(row for row in rows[1:] if row.startswith("north") and row.split(",")[place] == "0").split(",")
    edit(folder / "data/patients.csv", ",".join(cells), ",".join([*cells[:place], "1", *cells[place + 1 :]]))


def change_age(folder):
    rows = (folder / "data/patients.csv").read_text().splitlines()
    place = rows[0].split(",").index("age")
    cells = rows[1].split(",")
    edit(folder / "data/patients.csv", rows[1], ",".join([*cells[:place], "33", *cells[place + 1 :]]))


def delete_features(folder):
    row, _ = first_slide(folder)
    (folder / f"results/tiny/sites/north/features/colour/{row['slide_id']}.h5").unlink()


def delete_manifest(folder):
    (folder / "results/tiny/sites/north/features/colour/shard0.csv").unlink()


def delete_slide_table(folder):
    (folder / "results/tiny/sites/north/slides/0.csv").unlink()


def delete_site_table(folder):
    (folder / "results/tiny/sites/north/slides.csv").unlink()


def delete_attention(folder):
    next((folder / "results/tiny/sites/west/attention/attention_local").glob("*.h5")).unlink()


def delete_attention_of_a_site(folder):
    shutil.rmtree(folder / "results/tiny/sites/west/attention/attention_local")


def edit_truth(folder):
    path = sorted((folder / "data/truth").glob("*.png"))[0]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def join_without_labels(folder):
    """Two patients of west come again from a further hospital, each with a slide and a blank label; their ids."""
    sheets = [folder / f"data/{name}.csv" for name in ("slides", "patients")]
    slides, patients = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in sheets)
    known = set(patients.loc[patients["response"] != "", "patient_id"])
    chosen = slides[(slides["site"] == "west") & slides["patient_id"].isin(known)].drop_duplicates("patient_id").tail(2)
    for path in chosen["path"]:
        (folder / "data" / f"{path}.copy.tif").write_bytes((folder / "data" / path).read_bytes() + b"\0")
    more = chosen.assign(site="centre", slide_id="new-" + chosen["slide_id"], path=chosen["path"] + ".copy.tif")
    rows = patients[patients["patient_id"].isin(chosen["patient_id"])].assign(response="")
    for path, table in zip(sheets, ([slides, more], [patients, rows]), strict=True):
        table[1]["patient_id"] = "new-" + table[1]["patient_id"]
        path.unlink()
        pd.concat(table).to_csv(path, index=False)
    return rows["patient_id"].tolist()


def with_and_without_record(names, heart):
    """Each name with Snakemake's record of earlier runs and without it; without it, `make test` has the `heart` of them."""
    without = {name: [] if name in heart else pytest.mark.extended for name in names}
    return [
        *(pytest.param(name, True, id=f"{name}-with") for name in names),
        *(pytest.param(name, False, id=f"{name}-without", marks=marks) for name, marks in without.items()),
    ]
