"""The demo cohort: its files are what they say, its flaws are there, its signal is there and nothing else is."""

from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from sklearn.metrics import roc_auc_score

from mil.config import SlidesSpec, TileSpec
from mil.errors import MilError
from mil.progress import quiet
from mil.rng import rng
from mil.slides.check import check_slide, sheet_mpp
from mil.slides.slide import open_slide
from mil.synthetic import make_cohort
from mil.synthetic.flaws import flaws_by_slide, slide_ids
from mil.synthetic.layout import LAYOUT_UM, TRUTH_UM, Traits, lay_out
from mil.synthetic.nuclei import DRAW_MPP, Nuclei, draw_bank, thin, tumour_kind
from mil.synthetic.patients import clinical_table, draw_patients
from mil.synthetic.sites import SITES
from mil.synthetic.slides import SlideTask, make_slide
from mil.tables import read_text_table
from mil.tiles.grid import tile_slide

pytestmark = pytest.mark.slow

TILES = TileSpec(size_px=128, mpp=0.5)
BY_NAME = {site.name: site for site in SITES}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest cohort there is: two patients a site."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, seed=3, patients_per_site=2, reporter=quiet())
    return folder


@pytest.fixture(scope="module")
def slides(cohort: Path) -> pd.DataFrame:
    """The slide sheet with every slide's flaw ('' for none) beside it."""
    sheet = read_text_table(cohort / "slides.csv", "slide sheet")
    flaws = read_text_table(cohort / "flaws.csv", "flaws").set_index("slide_id")
    sheet["flaw"] = [flaws.flaw.get(slide_id, "") for slide_id in sheet.slide_id]
    return sheet


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    """Some thousand patients without pixels: infiltrate, response, traits and clinical columns."""
    patients = [patient for site in SITES for patient in draw_patients(0, site, 600)]
    table = clinical_table(0, patients)
    table["site"] = [patient.site.name for patient in patients]
    for name in Traits.__dataclass_fields__:
        table[name] = [getattr(patient.traits, name) for patient in patients]
    return table


def test_sheets_name_what_is_there(cohort: Path, slides: pd.DataFrame):
    assert list(slides.columns) == ["slide_id", "patient_id", "site", "path", "mpp", "flaw"]
    assert all((cohort / path).is_file() for path in slides.path)
    assert all((cohort / "truth" / f"{slide_id}.png").is_file() for slide_id in slides.slide_id)
    patients = read_text_table(cohort / "patients.csv", "patients")
    assert set(slides.patient_id) == set(patients.patient_id)
    assert len(patients) == 2 * len(SITES)
    assert not list(cohort.rglob("*.partial"))


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_files_are_what_the_site_says(cohort: Path, slides: pd.DataFrame, site):
    sound = slides[(slides.site == site.name) & ~slides.flaw.isin(["truncated", "no_mpp", "mpp_in_sheet"])]
    path = cohort / sound.path.iloc[0]
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(site.scanner.mpp, rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(site.scanner.mpp, rel=1e-4)
        assert slide.level_count == site.scanner.levels
        steps = np.diff(np.log(slide.level_downsamples)) / np.log(site.scanner.downsample)
        assert steps == pytest.approx(np.ones(site.scanner.levels - 1), abs=0.01)
        aperio = site.scanner.header == "aperio"
        assert slide.properties["openslide.vendor"] == ("aperio" if aperio else "generic-tiff")
        assert ("thumbnail" in slide.associated_images) == aperio
        corner = np.asarray(slide.read_region((0, 0), 0, (8, 8)).convert("RGB"))
        assert np.abs(corner.astype(int) - site.stain.glass).max() <= 3  # the colours survive the file's colour space
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert (page.tilewidth, page.tilelength) == (site.scanner.tile_px, site.scanner.tile_px)
        assert page.photometric.name == ("RGB" if site.scanner.colour == "rgb" else "YCBCR")


def test_every_flaw_comes_out_as_its_state(cohort: Path, slides: pd.DataFrame):
    flaws = read_text_table(cohort / "flaws.csv", "flaws")
    expected = {
        "truncated": "unreadable", "no_mpp": "no_mpp", "pen_marks": "ok", "blank": "no_tissue", "no_label": "no_label",
        "mpp_in_sheet": "ok",
    }  # fmt: skip
    assert dict(zip(flaws.flaw, flaws.state, strict=True)) == expected
    for row in slides.itertuples():
        found = check_slide(cohort / row.path, row.mpp, SlidesSpec())
        after_check = {"blank": "ok", "no_label": "ok"}  # seen later, in the tiles and in the patient table
        assert found["state"] == after_check.get(row.flaw, expected.get(row.flaw, "ok")), row.slide_id
        assert (row.mpp != "") == (row.flaw == "mpp_in_sheet")
        if found["state"] != "ok":
            continue
        with open_slide(cohort / row.path, sheet_mpp(row.mpp)) as slide:
            tiles = len(tile_slide(slide, TILES).coords)
        assert (tiles == 0) if row.flaw == "blank" else (45 <= tiles <= 220), (row.slide_id, tiles)


def test_only_the_flawed_patient_has_no_label(cohort: Path):
    patients = read_text_table(cohort / "patients.csv", "patients").set_index("patient_id")
    flaws = read_text_table(cohort / "flaws.csv", "flaws").set_index("flaw")
    assert list(patients.index[patients.response == ""]) == [flaws.patient_id["no_label"]]
    assert set(patients.response) == {"", "0", "1"}


def test_pen_marks_are_green_and_black(cohort: Path, slides: pd.DataFrame):
    row = slides[slides.flaw == "pen_marks"].iloc[0]
    with open_slide(cohort / row.path) as slide:
        red, green, blue = np.moveaxis(slide.thumbnail(8.0).astype(int), -1, 0)
    assert ((green > red + 40) & (green > blue + 20)).sum() > 100
    assert (np.maximum(np.maximum(red, green), blue) < 75).sum() > 100


def test_same_seed_same_bytes_whatever_else_is_made(cohort: Path, slides: pd.DataFrame, tmp_path: Path):
    """One slide made alone, in this process, from a larger cohort's patient: the bytes of the small cohort's."""
    row = slides[(slides.site == "east") & (slides.flaw == "")].iloc[0]
    patient = next(p for p in draw_patients(3, BY_NAME["east"], 15) if p.patient_id == row.patient_id)
    task = SlideTask(3, patient, row.slide_id, None, tmp_path / "slide.tif", tmp_path / "truth.png")
    make_slide(task)
    assert task.path.read_bytes() == (cohort / row.path).read_bytes()
    assert task.truth.read_bytes() == (cohort / "truth" / f"{row.slide_id}.png").read_bytes()
    assert draw_patients(4, BY_NAME["east"], 15)[0].infiltrate != draw_patients(3, BY_NAME["east"], 15)[0].infiltrate


def test_truth_lies_where_the_lymphocytes_are(cohort: Path, slides: pd.DataFrame):
    """The mask has the slide's size in microns, and inside it the tissue is fuller of dark, small nuclei."""
    row = slides[(slides.site == "north") & (slides.flaw == "")].iloc[0]
    mask = cv2.imread(str(cohort / "truth" / f"{row.slide_id}.png"), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    with open_slide(cohort / row.path) as slide:
        assert mask.shape == (round(slide.height * slide.mpp / TRUTH_UM), round(slide.width * slide.mpp / TRUTH_UM))
        grey = slide.thumbnail(1.0).min(axis=2)
    cell = round(TRUTH_UM)
    rows, columns = min(grey.shape[0] // cell, mask.shape[0]), min(grey.shape[1] // cell, mask.shape[1])
    grey, inside = grey[: rows * cell, : columns * cell], mask[:rows, :columns] > 0
    dark = (grey < 70).reshape(rows, cell, columns, cell).mean(axis=(1, 3))
    tissue = (grey < 215).reshape(rows, cell, columns, cell).mean(axis=(1, 3)) > 0.5
    assert dark[inside].mean() > 2 * dark[tissue & ~inside].mean()


def test_lymphocyte_tiles_can_be_told_from_their_pixels(cohort: Path, slides: pd.DataFrame):
    """Learnable in the least: how much of a tile is dark already finds the truth's tiles, at every hospital."""
    for site in SITES:
        rows = slides[(slides.site == site.name) & slides.flaw.isin(["", "no_label", "mpp_in_sheet"])]
        masks = {
            row: cv2.imread(str(cohort / "truth" / f"{row.slide_id}.png"), cv2.IMREAD_UNCHANGED) > 127
            for row in rows.itertuples()
        }
        row = max(masks, key=lambda one: masks[one].sum())  # the slide with most lymphocytes
        mask = masks[row]
        with open_slide(cohort / row.path, sheet_mpp(row.mpp)) as slide:
            coords = tile_slide(slide, TILES).coords
            pixels = np.concatenate([part for _, part in slide.read_tiles(coords, TILES.size_px, TILES.mpp, threads=1)])
            cells = np.floor(coords * slide.mpp / TRUTH_UM).astype(int)
        side = round(TILES.size_px * TILES.mpp / TRUTH_UM)
        truth = np.array([mask[y : y + side, x : x + side].mean() >= 0.3 for x, y in cells])
        dark = (pixels.min(axis=3) < np.quantile(pixels.min(axis=3), 0.08)).mean(axis=(1, 2))
        assert roc_auc_score(truth, dark) > 0.8, (site.name, truth.sum())


def test_layouts_hold_the_share_of_lymphocytes_that_response_was_drawn_from():
    patients = [patient for site in SITES for patient in draw_patients(1, site, 9)]
    wanted = np.array([patient.traits.lymphocytes for patient in patients])
    layouts = [lay_out(patient.traits, rng(1, "layout", patient.patient_id)) for patient in patients]
    drawn = np.array([(x.truth() > 0).sum() * (TRUTH_UM / LAYOUT_UM) ** 2 / (x.tissue > 0).sum() for x in layouts])
    assert np.corrcoef(wanted, drawn)[0, 1] > 0.98
    assert np.abs(drawn - wanted).max() < 0.12
    side_um = TILES.size_px * TILES.mpp
    squares = np.array([(x.tissue > 0).sum() * LAYOUT_UM**2 / side_um**2 for x in layouts])
    assert squares.min() > 50
    assert squares.max() < 150
    assert 70 < squares.mean() < 100  # some 110 slides: about ten thousand tiles, what two cores can encode in a demo


def test_signal_is_in_the_lymphocytes_and_nowhere_else(many: pd.DataFrame):
    for site in SITES:
        of_site = many[many.site == site.name]
        assert 0.88 < roc_auc_score(of_site.response, of_site.lymphocytes) < 0.95
        assert of_site.response.mean() == pytest.approx(site.responders, abs=1e-9)
    for name in set(Traits.__dataclass_fields__) - {"lymphocytes"}:
        assert 0.46 < roc_auc_score(many.response, many[name]) < 0.54, name


def test_clinical_columns_hint_weakly(many: pd.DataFrame):
    hints = {"til_percent": many.til_percent, "ki67": many.ki67, "grade": many.grade, "age": -many.age}
    hints |= {"t_stage": -many.t_stage.str[1:].astype(int), "n_stage": -many.n_stage.str[1:].astype(int)}
    for name, values in hints.items():
        assert 0.52 < roc_auc_score(many.response, values) < 0.76, name
    assert many.age.between(18, 100).all()
    assert many.ki67.between(0, 100).all()
    assert many.til_percent.between(1, 100).all()
    assert (many.time_months > 0).all()
    assert many.event[many.response == 0].mean() > many.event[many.response == 1].mean() + 0.1


def test_hospitals_stain_and_scan_differently(cohort: Path, slides: pd.DataFrame):
    """Mean optical density of tissue, scaled to length 1 so that the amount of stain does not count: apart site by site."""
    colours = {}
    for site in SITES:
        tissue = []
        for row in slides[(slides.site == site.name) & slides.flaw.isin(["", "no_label"])].itertuples():
            with open_slide(cohort / row.path) as slide:
                picture_of = slide.thumbnail(4.0)
            density = -np.log((picture_of[picture_of.min(axis=2) < 190] + 1.0) / 256).mean(axis=0)
            tissue.append(density / np.linalg.norm(density))
        colours[site.name] = np.mean(tissue, axis=0)
    names = list(colours)
    apart = [np.abs(colours[a] - colours[b]).max() for k, a in enumerate(names) for b in names[k + 1 :]]
    assert min(apart) > 0.01
    assert len({site.scanner.mpp for site in SITES}) == 3
    assert {site.role for site in SITES} == {"train", "external"}


def test_flaws_fall_on_slides_that_are_made_for_them():
    for number in (2, 15):
        patients = [patient for site in SITES for patient in draw_patients(0, site, number)]
        flaws = flaws_by_slide(patients)
        made = [slide_id for patient in patients for slide_id in slide_ids(patient, flaws)]
        assert set(flaws) <= set(made)
        assert len(set(made)) == len(made)
        assert all(slide_id.startswith(flaw.site) for slide_id, flaw in flaws.items())


def test_thinning_keeps_the_first_and_leaves_no_two_too_close():
    kind = tumour_kind(10.0, 0.5)
    stream = rng(0, "thin")
    groups = [Nuclei(kind, stream.random((n, 2)) * 200, np.zeros(n)) for n in (1, 400)]
    first, second = thin(groups)
    assert len(first.centres) == 1
    centres = np.concatenate([first.centres, second.centres])
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    assert apart[~np.eye(len(centres), dtype=bool)].min() >= kind.diameter_um * kind.apart
    assert 1 < len(centres) < 401


def test_nuclei_have_the_size_that_their_kind_says():
    kind = tumour_kind(10.0, 0.0)
    bank = draw_bank(kind, rng(0, "bank"))
    areas = bank.cover.sum(axis=(1, 2)) * DRAW_MPP**2
    assert 2 * np.sqrt(np.median(areas) / np.pi) == pytest.approx(10.0, rel=0.1)
    assert bank.cover.shape == bank.stain.shape
    assert (bank.cover[:, 0].max(), bank.cover[:, -1].max()) == (0, 0)  # none is cut off by its picture


def test_too_few_patients_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(MilError, match="--patients 1: a demo cohort has 2 or more"):
        make_cohort(tmp_path / "cohort", patients_per_site=1)
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("blocked", ["", "north", "truth"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, blocked: str):
    folder = tmp_path / "cohort"
    obstacle = folder / blocked
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("a file where a folder should be")
    with pytest.raises(MilError, match="cannot be made") as refusal:
        make_cohort(folder, patients_per_site=2)
    assert str(obstacle) in str(refusal.value)
    assert not (folder / "slides.csv").exists()
