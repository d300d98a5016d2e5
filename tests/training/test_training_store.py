"""Feature files -> bags: order, refusals, and files that stay where they are."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from mil import hdf5
from mil.config import EncoderSpec
from mil.errors import CorruptFile, MilError
from mil.training.sources import Pinned, Resident, Streamed
from mil.training.store import FeatureStore

ABOUT = {"encoder": "e", "weights_sha256": "00", "size_px": 224, "tile_mpp": 0.5}
BAGS = pd.DataFrame(
    [
        {"patient_id": "007", "slides": "s1;s2", "site": "A"},
        {"patient_id": "NA", "slides": "s3", "site": "B"},
    ]
)


def write(folder, site, slide, tiles, **about):
    path = folder / site / "features" / "effnet" / f"{slide}.h5"
    with hdf5.writing(path) as writer:
        writer.append("features", tiles)
        writer.annotate(ABOUT | about)
    return path


def tiles_of(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float16)


@pytest.fixture
def sites(tmp_path):
    for seed, (site, slide, count) in enumerate([("A", "s1", 3), ("A", "s2", 2), ("B", "s3", 4)]):
        write(tmp_path, site, slide, tiles_of(count, seed))
    return tmp_path


def test_a_bag_is_its_slides_in_their_order(sites):
    store = FeatureStore.open(BAGS, sites, "effnet")
    assert store.patients == ("007", "NA")
    assert store.sizes.tolist() == [5, 4]
    np.testing.assert_array_equal(store.bag(0), np.concatenate([tiles_of(3, 0), tiles_of(2, 1)]))
    assert store.tiles.dtype == torch.float16
    assert store.about == ABOUT
    np.testing.assert_allclose(store.means().bag(1)[0], tiles_of(4, 2).astype(np.float64).mean(0), rtol=1e-6)
    assert store.require(["NA"]).tolist() == [1]
    with pytest.raises(MilError, match="patient X is not among the 2 patients"):
        store.require(["X"])


def test_what_does_not_fit_stays_in_its_files(sites):
    whole, little = FeatureStore.open(BAGS, sites, "effnet"), FeatureStore.open(BAGS, sites, "effnet", memory=24)
    assert little.tiles is None
    for number in range(2):
        np.testing.assert_array_equal(little.bag(number), whole.bag(number))
    source = little.source(torch.device("cpu"))
    assert isinstance(source, Streamed)
    assert isinstance(whole.source(torch.device("cpu")), Resident)
    rows = torch.tensor([8, 0, 4, 4])
    expected = whole.tiles[rows]
    assert torch.equal(source.take(rows), expected)
    assert torch.equal(Pinned(whole.tiles, torch.device("cpu")).take(rows), expected)
    assert source.peak <= 32  # the largest slide alone
    assert torch.equal(little.means().tiles, whole.means().tiles)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights_sha256": "11"}, "weights_sha256 is 11, but 00 in"),
        ({"encoder": "f"}, "encoder is f, but e in"),
        ({"tile_mpp": 0.25}, "tile_mpp is 0.25, but 0.5 in"),
        ({"spec": {"name": "e", "stain": "reinhard"}}, "stain is reinhard, but not stated in"),
        ({"level": "nearest"}, "settings is level-nearest, but not stated in"),
        ({"spec": {"name": "e", "mean": [0.5, 0.5, 0.5]}}, "settings is mean-0.5_0.5_0.5, but not stated in"),
    ],
)
def test_mixed_features_are_refused(sites, change, said):
    write(sites, "B", "s3", tiles_of(4, 2), **change)
    with pytest.raises(CorruptFile, match=r"s3\.h5: ") as caught:
        FeatureStore.open(BAGS, sites, "effnet")
    assert said in str(caught.value)


def test_a_flipped_value_is_refused_also_where_tiles_are_streamed(sites):
    path = sites / "A" / "features" / "effnet" / "s2.h5"
    with h5py.File(path, "r+") as file:
        file["features"][1, 2] += 1
    with pytest.raises(CorruptFile, match=r"s2\.h5: checksum"):
        FeatureStore.open(BAGS, sites, "effnet")
    with pytest.raises(CorruptFile, match=r"s2\.h5: checksum"):
        FeatureStore.open(BAGS, sites, "effnet", memory=24).bag(0)


def test_the_whole_file_of_another_slide_is_refused(sites):
    folder = sites / "A" / "features" / "effnet"
    write(sites, "A", "s1", tiles_of(3, 0), slide_id="s1")
    write(sites, "A", "s2", tiles_of(2, 1), slide_id="s2")
    shutil.copy(folder / "s1.h5", folder / "s2.h5")
    with pytest.raises(CorruptFile, match=r"s2\.h5: is the file of slide 's1'"):
        FeatureStore.open(BAGS, sites, "effnet")


def test_a_file_that_its_manifest_does_not_list_is_refused(sites):
    folder = sites / "A" / "features" / "effnet"
    rows = [{"slide_id": name, "checksum": hdf5.verify(folder / f"{name}.h5")} for name in ("s1", "s2")]
    pd.DataFrame(rows).assign(state="ok", reason="", num_tiles=2).to_csv(folder / "shard0.csv", index=False)
    before = FeatureStore.open(BAGS, sites, "effnet").digest()
    write(sites, "A", "s2", tiles_of(2, 7))  # whole, of the same recipe, but not what was listed
    with pytest.raises(CorruptFile, match=r"s2\.h5: its checksum is [0-9a-f]{12}, but the manifest beside it lists"):
        FeatureStore.open(BAGS, sites, "effnet")
    (folder / "shard0.csv").unlink()
    assert FeatureStore.open(BAGS, sites, "effnet").digest() != before


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            {"encoder": "uni2"},
            "are of encoder 'uni2' (4 numbers a tile), but the cohort's encoder 'effnet' is efficientnet_lite0",
        ),
        ({"encoder": "efficientnet_lite0"}, "has 4 numbers a tile, but efficientnet_lite0"),
    ],
)
def test_features_of_another_encoder_than_the_cohort_names_are_refused(made, said, sites):
    for site, slide, count in (("A", "s1", 3), ("A", "s2", 2), ("B", "s3", 4)):
        write(sites, site, slide, tiles_of(count, 0), **made)
    FeatureStore.open(BAGS, sites, "effnet")
    with pytest.raises(MilError, match=r"s1\.h5") as caught:
        FeatureStore.open(BAGS, sites, "effnet", spec=EncoderSpec())
    assert said in str(caught.value)
    if made["encoder"] == "uni2":
        assert "`uni2: {name: uni2_h}` under `encoders:`" in str(caught.value)


def test_what_nobody_registered_is_known_by_the_cohorts_own_name(sites):
    assert FeatureStore.open(BAGS, sites, "effnet", spec=EncoderSpec(name="E")).width == 4


def test_bad_features_name_their_file(sites):
    bad = tiles_of(4, 2)
    bad[1, 1] = np.inf
    write(sites, "B", "s3", bad)
    with pytest.raises(CorruptFile, match=r"s3\.h5: features hold NaN or infinity"):
        FeatureStore.open(BAGS, sites, "effnet")
    write(sites, "B", "s3", tiles_of(4, 2)[:0])
    with pytest.raises(CorruptFile, match="patient NA has no tile"):
        FeatureStore.open(BAGS, sites, "effnet")
    write(sites, "B", "s3", tiles_of(4, 2)[:, 0])
    with pytest.raises(CorruptFile, match=r"s3\.h5: has no features"):
        FeatureStore.open(BAGS, sites, "effnet")
    with pytest.raises(CorruptFile, match=r"s4\.h5: does not exist"):
        FeatureStore.open(BAGS.assign(slides="s4"), sites, "effnet")
    with pytest.raises(MilError, match="no row"):
        FeatureStore.open(BAGS[:0], sites, "effnet")


def test_nan_in_memory_names_its_patient():
    with pytest.raises(CorruptFile, match="features of patient b hold NaN"):
        FeatureStore.of({"a": np.zeros((2, 2)), "b": np.full((1, 2), np.nan)})
