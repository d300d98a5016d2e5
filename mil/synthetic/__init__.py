"""A seed -> the demo cohort: four hospitals of synthetic H&E slides, with a planted signal and flaws on purpose.

`make_cohort(folder)` writes `slides.csv`, `patients.csv`, `flaws.csv`, `{site}/{slide}.svs|.tif` and `truth/{slide}.png`.
Nothing is downloaded and no pixel is copied from a real slide; what follows is how all of it is drawn, in order.

**Patients** (`patients`). Every patient has an *infiltrate*, standard normal. Response is logistic in it (3.2 log odds a
deviation: AUROC about 0.92 for one who knew it), with an intercept that gives each hospital exactly its share of
responders (33-60 %). The lymphocyte-rich share of the tissue is `logistic(-1.9 + 1.1 infiltrate)`: 13 % in the median, 5-31 % a
deviation below and above. All else about the tissue (cellularity, breadth of nests, fat, necrosis, size and shape of
nuclei) is drawn without regard to response. Age, Ki67, grade, T and N hint at it weakly, as in open
neoadjuvant cohorts; `til_percent` is the infiltrate with a pathologist's error one and a half times its own spread.

**Layout** (`layout`), on a grid of 4 microns. One to three bent strips with ragged sides, together about 1.3 mm of a core
biopsy. Fat, tumour nests, necrosis inside nests and lymphocyte clusters are the high ground of smooth noise, cut at the
level that gives each its share; clusters prefer the stroma along nests. Vessels and benign ducts lie in the
stroma that is left. The clusters are the **truth**: `truth/{slide}.png`, 8 microns a pixel from the slide's top
left corner, 255 inside.

**Drawing** (`drawing`, at 0.5 microns a pixel), as amounts of dye. Collagen (`fibres`) is noise smeared along the level lines of a
potential that follows the core and bends round the nests. Cytoplasm is a Voronoi diagram of the nuclei, fat one of
jittered points, lymphoid ground and necrosis are noise (`grounds`). Nuclei (`nuclei`, `placing`) are wobbly ellipses
with rim, clumped chromatin and nucleoli, drawn once a slide in some hundred variants a kind and laid turned and flipped:
pleomorphic tumour cells, mitoses, small dark lymphocytes, plasma cells, spindle-shaped fibroblasts along the fibres,
debris. Layout and proportions were modelled on real breast and ovarian tissue, by eye.

**Hospitals** (`sites`). `stains` turns dyes into light by Beer and Lambert's law with the hospital's own vectors; east stains with
saffron, as French laboratories do; sections scatter around their hospital. `writing` gives the scanner's file:

=====  ========  =========  ======  ==========================  =================  =======
site   role      responds   mpp     header                      JPEG               pyramid
=====  ========  =========  ======  ==========================  =================  =======
north  train     40 %       0.25    Aperio `.svs`, 256 px       RGB, 80            3, by 4
south  train     47 %       0.2527  TIFF, a centimetre, 512 px  YCbCr 4:2:0, 70    5, by 2
east   external  33 %       0.5     TIFF, a centimetre, 240 px  YCbCr 4:2:0, 85    3, by 2
west   external  60 %       0.5     TIFF, an inch, make and     YCbCr 4:2:0, 60    2, by 4
                                    model, 256 px
=====  ========  =========  ======  ==========================  =================  =======

The finer scans are enlarged from the drawing: they have a real scanner's pixels, not its detail.

**Flaws** (`flaws`): a truncated file, a slide without mpp, pen marks, blank glass, a patient without a label, and a slide whose
mpp stands only in the sheet. `flaws.csv` names each with the state that it must come out with.

Every random number comes from a stream named after the seed, the purpose and the patient or slide, so the same seed gives the
same bytes, and a patient's tissue is the same in a cohort of any size.
"""

from mil.synthetic.cohort import make_cohort

__all__ = ["make_cohort"]
