"""Real breast tissue in three hospitals: each checks, tiles and encodes its own slides, and deals its own folds."""

import subprocess
import sys
from pathlib import Path

from hospitals import PROTOCOL, Hospitals, make_hospitals

from mil.bags.table import deal_folds
from mil.config import EncoderSpec, SlidesSpec, TileSpec
from mil.features.shard import extract_shard
from mil.progress import quiet
from mil.slides.check import check_slides
from mil.slides.sheet import read_cohort
from mil.tables import write_table
from mil.tiles.shard import tile_shard

SITES = {"A": ("train", 48), "B": ("train", 50), "C": ("external", 30)}
ENDPOINT = {**PROTOCOL["endpoint"], "column": "tumour"}


def make_tissue_hospitals(folder: Path, port: int, experiment: dict, **changes) -> Hospitals:
    """As `make_hospitals`, for features of the embedded encoder; `write_tissue` puts them there."""
    made = {**experiment, "encoder": "effnet"}
    return make_hospitals(folder, port, SITES, lambda *_: None, experiment=made, endpoint=ENDPOINT, **changes)


def write_tissue(hospitals: Hospitals, shared: Path) -> None:
    """Slides as `tools/make_idc_cohort.py` lays them out, tiled and encoded by every site for itself."""
    folder = hospitals.folder / "cohort"
    folder.mkdir()
    tool = shared / "tools" / "make_idc_cohort.py"
    subprocess.run([sys.executable, tool, shared / "data", folder], check=True, timeout=120, capture_output=True)
    roles = {site: role for site, (role, _) in SITES.items()}
    slides = SlidesSpec(sheet=str(folder / "slides.tsv"), roles=roles)
    cohort = read_cohort(slides, ["tumour"])
    labels = cohort.patients.set_index("patient_id")["tumour"].astype(int)
    endpoint = hospitals.protocol.endpoint
    for site, (role, patients) in SITES.items():
        results = Path(hospitals.site(site).results)
        own = results / "sites" / site
        table = check_slides(cohort.at(site).iloc[:patients], slides, quiet())
        tile_shard(table, TileSpec(size_px=50, mpp=4.0), own / "tiles", own / "thumbnails", quiet())
        extract_shard(table, own / "tiles", EncoderSpec(), own / "features" / "effnet", quiet())
        rows = table[["patient_id", "slide_id", "site"]].rename(columns={"slide_id": "slides"})
        rows = rows.assign(role=role, label=labels.loc[rows["patient_id"]].to_numpy()).reset_index(drop=True)
        write_table(deal_folds(rows, endpoint), results / "bags" / "response.csv")
