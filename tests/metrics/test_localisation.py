"""Attention against truth: tile shares by hand, pooled and mean AUROC, patients as the unit."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mil.config import MetricsSpec, TruthSpec
from mil.errors import MilError
from mil.metrics.localisation import SlideAttention, by_slide, localise
from mil.rng import rng
from mil.tiles.truth import load_truth

SPEC = MetricsSpec(bootstrap=200)


def test_share_of_squares_by_hand(tmp_path):
    (tmp_path / "truth.tsv").write_text("slide_id\tx_um\ty_um\tcarcinoma\ns\t0\t0\t1\ns\t200\t0\t0\ns\t0\t200\t1\n")
    truth = load_truth(TruthSpec(table="truth.tsv", column="carcinoma", square_um=200), tmp_path)
    corners = np.array([[0, 0], [100, 0], [100, 100], [400, 400]])  # level-0 pixels of 1 micron
    assert truth.share("s", corners, 200, 1.0, (1000, 1000)) == pytest.approx([1, 0.5, 0.5, 0])
    assert truth.share("s", corners // 2, 200, 2.0, (1000, 1000)) == pytest.approx([1, 0.5, 0.5, 0])
    assert truth.share("other", corners, 200, 1.0, (1000, 1000)) is None


def test_share_of_a_mask_by_hand(tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 255
    cv2.imwrite(str(tmp_path / "s.png"), mask)
    truth = load_truth(TruthSpec(masks=str(tmp_path / "{slide_id}.png"), mask_mpp=8), tmp_path)
    # tiles of 32 microns = 4 mask pixels; a level-0 pixel is 2 microns
    corners = np.array([[0, 0], [32, 0], [40, 0], [72, 32]])
    assert truth.share("s", corners, 32, 2.0, (160, 80)) == pytest.approx([0, 0.5, 1, 0.25])
    assert truth.share("none", corners, 32, 2.0, (160, 80)) is None


def test_a_mask_of_another_scale_than_the_settings_is_refused(tmp_path):
    """At half the microns per pixel, every tile's truth was that of a place twice as far from the corner."""
    cv2.imwrite(str(tmp_path / "s.png"), np.full((10, 20), 255, np.uint8))
    truth = load_truth(TruthSpec(masks=str(tmp_path / "{slide_id}.png"), mask_mpp=4), tmp_path)
    with pytest.raises(MilError, match=r"covers 80 x 40 microns at truth\.mask_mpp 4, the slide 160 x 80"):
        truth.share("s", np.array([[0, 0]]), 32, 2.0, (160, 80))


@pytest.mark.parametrize(("dtype", "said"), [(np.uint8, "its brightest pixel is 1 of 255"), (np.uint16, "8-bit PNG")])
def test_a_mask_in_which_nothing_would_be_positive_is_refused(tmp_path, dtype, said):
    cv2.imwrite(str(tmp_path / "s.png"), np.eye(8, dtype=dtype))
    with pytest.raises(MilError, match=said):
        load_truth(TruthSpec(masks=str(tmp_path / "{slide_id}.png"), mask_mpp=8), tmp_path).mask("s")
    (tmp_path / "s.xml").write_text("<ASAP_Annotations/>")
    with pytest.raises(MilError, match="draw its outlines into one"):
        load_truth(TruthSpec(masks="{slide_id}.xml", mask_mpp=8), tmp_path).mask("s")


def test_a_truth_table_with_text_for_numbers_names_the_line(tmp_path):
    (tmp_path / "truth.csv").write_text("slide_id,x_um,y_um,truth\ns,0,0,1\ns,left,0,1\n")
    with pytest.raises(MilError, match="line 3"):
        load_truth(TruthSpec(table="truth.csv", square_um=200), tmp_path)
    with pytest.raises(MilError, match="does not exist"):
        load_truth(TruthSpec(table="nowhere.csv", square_um=200), tmp_path)


def slide(number: int, patient: str, site: str = "A", tiles: int = 30, signal: float = 1.5) -> SlideAttention:
    stream = rng(0, "slide", number)
    truth = stream.random(tiles) < 0.4
    weights = np.exp(signal * truth + stream.normal(size=tiles))
    role = "train" if site == "A" else "external"
    return SlideAttention(f"s{number}", patient, site, role, weights / weights.sum(), truth, tiles)


def test_pooled_and_mean_auroc_are_scikit_learns():
    slides = [slide(number, f"p{number // 2}") for number in range(10)]
    table = localise(slides, SPEC, "attention").set_index(["site", "metric"])
    truth = np.concatenate([one.truth for one in slides])
    relative = np.concatenate([one.relative for one in slides])
    assert table.loc[("A", "tile_auroc_pooled"), "value"] == pytest.approx(roc_auc_score(truth, relative))
    mean = np.mean([roc_auc_score(one.truth, one.attention) for one in slides])
    assert table.loc[("A", "tile_auroc_mean"), "value"] == pytest.approx(mean)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    assert table.loc[("A", "tile_auroc_mean"), "patients"] == 5
    assert set(table.index.get_level_values("site")) == {"A", "training sites"}


def test_flat_attention_is_worth_one_half():
    flat = [
        SlideAttention(f"s{n}", f"p{n}", "A", "train", np.full(10, 0.1), np.arange(10) < n + 1, 10) for n in range(4)
    ]
    table = localise(flat, SPEC, "mean")
    assert table["value"].tolist() == [0.5] * len(table)


def test_slides_of_one_kind_count_in_the_pool_only():
    slides = [slide(0, "p0"), SlideAttention("s9", "p9", "A", "train", np.full(5, 0.2), np.zeros(5, bool), 5)]
    assert by_slide(slides)["slide_id"].tolist() == ["s0"]
    table = localise(slides, SPEC, "attention").set_index(["site", "metric"])
    assert table.loc[("A", "tile_auroc_pooled"), "tiles"] == 35
    nothing = localise(slides[1:], SPEC, "attention")
    assert nothing["value"].isna().all()
    assert nothing["method"].str.startswith("not defined").all()


def test_the_order_of_slides_does_not_matter():
    slides = [slide(number, f"p{number}") for number in range(6)]
    first, second = localise(slides, SPEC, "x"), localise(slides[::-1], SPEC, "x")
    assert first.equals(second)
