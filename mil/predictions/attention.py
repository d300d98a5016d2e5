"""Attention a patient -> one file a slide in its site's folder, beside the corners of the tiles that it belongs to."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mil import hdf5
from mil.errors import CorruptFile
from mil.files import file_name
from mil.tables import slides_of, write_table


def write_attention(
    attention: Mapping[str, np.ndarray], bags: pd.DataFrame, sites_folder: Path, encoder: str, experiment: str
) -> None:
    """Write `sites/{site}/attention/{experiment}/{slide}.h5`: `attention` float32 (tiles,), 1 over the bag, and `coords`.

    A site's folder is made even if none of its patients has attention, or a bag at all, so that the workflow finds it; its
    `manifest.csv` lists the slides.
    """
    written = {site: [] for site in {*bags["site"], *(path.parent.name for path in sites_folder.glob("*/slides.csv"))}}
    for site in written:
        (sites_folder / site / "attention" / experiment).mkdir(parents=True, exist_ok=True)
    for row in bags.itertuples():
        if row.patient_id not in attention:
            continue
        weights, at = attention[str(row.patient_id)], 0
        for slide in slides_of(row.slides):
            name = f"{file_name(slide)}.h5"
            (coords,) = hdf5.read(sites_folder / str(row.site) / "features" / encoder / name, "coords")
            target = sites_folder / str(row.site) / "attention" / experiment / name
            with hdf5.writing(target) as file:
                file.append("attention", weights[at : at + len(coords)].astype(np.float32))
                file.append("coords", coords)
                file.annotate({"stage": "attention", "slide_id": slide, "experiment": experiment})
            written[row.site].append(slide)
            at += len(coords)
        if at != len(weights):
            raise CorruptFile(
                f"patient {row.patient_id}: {len(weights)} attention weights for {at} tiles; run `mil predict` again"
            )
    for site, slides in written.items():
        write_table(pd.DataFrame({"slide_id": slides}), sites_folder / site / "attention" / experiment / "manifest.csv")
