"""A slide id as hospitals write them goes through every stage, and its files can be told from their names."""

from urllib.parse import unquote

import numpy as np
import pandas as pd
from feature_slides import SPEC, write_slide

from mil.config import Config, EncoderSpec, SlidesSpec
from mil.features.shard import extract_shard
from mil.features.validate import validate
from mil.predictions.attention import write_attention
from mil.progress import quiet
from mil.results.results import Results
from mil.slides.check import check_slides
from mil.slides.sheet import read_cohort
from mil.tables import read_table, write_table
from mil.tiles.contact import write_contact_sheet
from mil.tiles.shard import tile_shard
from mil.training.store import FeatureStore

IDS = ["S 12 (a)", "50% [x]", "=1+1"]


def test_ids_with_blanks_brackets_and_signs_go_through_every_stage(tmp_path):
    rows = [f'"{name}","P {number}.",A,{number}.tif' for number, name in enumerate(IDS)]
    for number in range(len(IDS)):
        write_slide(tmp_path / f"{number}.tif", 3, seed=number)
    (tmp_path / "slides.csv").write_text("\n".join(["slide_id,patient_id,site,path", *rows]) + "\n")
    spec = SlidesSpec(sheet=str(tmp_path / "slides.csv"), roles={"A": "train"})
    site = tmp_path / "sites/A"
    write_table(check_slides(read_cohort(spec).slides, spec, quiet()), site / "slides.csv")
    slides = read_table(site / "slides.csv")
    assert list(slides["slide_id"]) == IDS

    tiles = tile_shard(slides, SPEC, site / "tiles", site / "thumbnails", quiet())
    write_table(tiles.head(1), site / "tiles/shard1.csv")  # an earlier run had this slide in another shard
    write_table(tiles, site / "tiles/shard0.csv")
    assert list(tiles["state"]) == ["ok"] * 3
    write_contact_sheet(slides, site / "tiles", site / "thumbnails", site / "contact.jpg")
    encoder = EncoderSpec(name="colour")
    features = extract_shard(slides, site / "tiles", encoder, site / "features/colour", quiet())
    write_table(features, site / "features/colour/shard0.csv")
    assert sorted(unquote(path.stem) for path in (site / "features/colour").glob("*.h5")) == sorted(IDS)
    assert set(validate(tmp_path, quiet())["state"]) == {"ok"}

    bags = pd.DataFrame({"patient_id": ["p"], "site": ["A"], "slides": [";".join(IDS)]})
    store = FeatureStore.open(bags, tmp_path / "sites", "colour", spec=encoder)
    assert store.sizes.tolist() == [features["num_tiles"].sum()]
    weights = np.full(store.sizes[0], 1 / store.sizes[0])
    write_attention({"p": weights}, bags, tmp_path / "sites", "colour", "run")
    assert sorted(unquote(path.stem) for path in (site / "attention/run").glob("*.h5")) == sorted(IDS)


def test_zeros_in_front_of_an_id_are_part_of_it_wherever_bags_are_read(tmp_path):
    bags = {"patient_id": ["007", "07"], "slides": ["001", "2019.10"], "site": "1", "role": "train", "label": [0, ""]}
    write_table(pd.DataFrame(bags), tmp_path / "bags/response.csv")
    results = Results(tmp_path, Config())
    assert results.bags("response")[["patient_id", "slides", "site"]].to_numpy().tolist() == [["007", "001", "1"]]
    assert results.without_label("response")["slides"].tolist() == ["2019.10"]
