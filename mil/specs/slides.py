"""Settings from the sheet to tiles: slides and their truth, tissue, quality, the grid."""

from typing import Literal

from pydantic import Field, model_validator

from mil.spec import Spec
from mil.specs.features import FeaturesSpec


class TruthSpec(Spec):
    """Where each slide's truth is known (only for scoring attention, never for training): a table of squares or a mask."""

    table: str | None = None
    """CSV/TSV with slide_id, x_um, y_um (top left of a square, in microns from the slide's top left) and `column` (0/1)."""
    column: str = "truth"
    square_um: float | None = Field(default=None, gt=0)
    """Side of the table's squares in microns."""
    masks: str | None = None
    """Path pattern of 8-bit PNG masks, e.g. `truth/{slide_id}.png`; a pixel above 127 is positive."""
    mask_mpp: float | None = Field(default=None, gt=0)
    """Microns a mask pixel."""
    positive_share: float = Field(default=0.5, gt=0, le=1)
    """A tile is positive when at least this share of it is."""

    @model_validator(mode="after")
    def _one_source(self) -> "TruthSpec":
        if (self.table is None) == (self.masks is None):
            raise ValueError("give either table (with square_um) or masks (with mask_mpp)")
        if self.table is not None and self.square_um is None:
            raise ValueError("table needs square_um")
        if self.masks is not None and self.mask_mpp is None:
            raise ValueError("masks need mask_mpp")
        return self


class SlidesSpec(Spec):
    """The cohort's slides and patients, and when a slide is refused."""

    version: Literal[1] = 1
    sheet: str = "slides.csv"
    """Slide sheet, one row a slide: slide_id, patient_id, site, path (absolute or relative to the sheet), optional mpp."""
    patients: str | None = None
    """Patient table: patient_id, labels, clinical columns, optional time/event. Without it, the sheet's extra columns serve."""
    roles: dict[str, Literal["train", "external"]] = Field(default={})
    """Role of every site of the sheet. External sites are never read by training or selection."""
    features: dict[str, FeaturesSpec] = Field(default={})
    """Sites that join with features alone, e.g. `{hospital_b: {layout: stamp, folder: data/b}}`: their slides' `path` may be blank,
    no slide is opened and no tile made."""
    mpp_min: float = Field(default=0.05, gt=0)
    mpp_max: float = Field(default=5.0, gt=0)
    """Microns a pixel outside these bounds are implausible; the sheet's mpp column is the way out."""
    anisotropy_max: float = Field(default=0.02, ge=0)
    """Largest relative difference of mpp in x and y."""
    unreadable: Literal["refuse", "drop"] = "refuse"
    """A slide with a place that cannot be decoded is `unreadable_region`; with `drop` it goes on with a remark, for `tiles.unreadable`."""
    fingerprint: Literal["sample", "full"] = "sample"
    """What a slide is known by: a hash of its size, headers and spread blocks where it has more than 64 MB, or of every byte."""
    on_bad_slide: Literal["flag", "stop"] = "flag"
    """A slide that cannot be used is a row with a reason (`flag`), or ends the run (`stop`)."""


class TissueSpec(Spec):
    """How tissue is separated from glass on the thumbnail. Black areas that were never scanned are not tissue."""

    method: str = "contrast"
    """`contrast`: darker than the slide's own glass; `otsu_saturation`, `otsu_grey`: one threshold; `mask`: only what `masks` holds."""
    mpp: float = Field(default=8.0, ge=0.1, le=250)
    """Resolution of the thumbnail that tissue is sought on."""
    min_density: float = Field(default=0.055, gt=0)
    """For `contrast`: least optical density over glass (0.055 is 12 % darker) in the most absorbed of red, green and blue."""
    margin_um: float = Field(default=10.0, ge=0, le=10_000)
    """Tissue is grown by this much, so that frayed edges are whole."""
    min_area_um2: float = Field(default=10_000.0, ge=0)
    """Smaller specks are glass."""
    fill_holes_um2: float = Field(default=10_000.0, ge=0)
    """Holes up to this area are filled; larger ones are kept. 0 keeps all."""
    ink_is_glass: bool = True
    """Smooth red, green, blue, purple or black areas are pen ink, not tissue. Switch it off for stains that have such colours
    themselves (Alcian blue, trichrome)."""
    masks: str | None = None
    """Path pattern of masks that replace the method where they exist, e.g. `masks/{slide_id}.geojson` (level-0 pixels, as QuPath
    writes them) or `.png` (the whole slide at any size, tissue above 127)."""

    @model_validator(mode="after")
    def _masks_named(self) -> "TissueSpec":
        if self.masks is None and self.method == "mask":
            raise ValueError("method 'mask' needs masks, e.g. masks/{slide_id}.geojson")
        if self.masks is not None and "{slide_id}" not in self.masks:
            raise ValueError("masks needs {slide_id} in it")
        return self


class QualitySpec(Spec):
    """What is wrong with a tile: scores from 0 to 1 and the score from which a tile is flagged."""

    mpp: float = Field(default=1.0, ge=0.1, le=250)
    """Resolution at which a tile's pixels are read for `blurred` and `blank`."""
    missing: float | None = Field(default=0.1, gt=0, le=1)
    """Share of a tile for which the file holds no pixels (tiles without bytes, gaps between scanned regions, black that was never
    scanned); none: not looked for."""
    pen: float | None = Field(default=0.1, ge=0, le=1)
    """Share of a tile covered by red, green, blue, purple or black ink; none: not looked for."""
    blurred: float | None = Field(default=0.5, ge=0, le=1)
    """1 - sharpness of the tile's own structures at `mpp`; 0 is crisp, 1 has no edge at all."""
    coverslip: float | None = Field(default=0.5, ge=0, le=1)
    """How far a straight edge, longer than tissue makes, runs through the tile."""
    blank: float | None = Field(default=0.95, ge=0, le=1)
    """Share of the tile's pixels that are glass."""
    drop: tuple[Literal["missing", "pen", "blurred", "coverslip", "blank"], ...] = ("missing",)
    """Flags for which a tile is left out; tiles with other flags are kept and counted."""


class TileSpec(Spec):
    """Squares of `size_px` at `mpp`, exactly, on every scanner."""

    version: Literal[2] = 2
    size_px: int = Field(default=224, ge=16, le=4096)
    mpp: float = Field(default=0.5, ge=0.01, le=100)
    """Microns a pixel of the tile; `size_px * mpp` is its side in microns."""
    stride_px: int | None = Field(default=None, ge=1)
    """Distance of neighbouring tiles in tile pixels; none: `size_px`, no overlap."""
    edge: Literal["drop", "pad"] = "drop"
    """A tile that reaches over the slide's right or lower edge is left out, or kept, white beyond the edge."""
    min_tissue: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of tissue in a tile."""
    max_magnification: float = Field(default=2.0, ge=1, le=100)
    """A slide coarser than `mpp` by more than this is refused (`too_coarse`); up to it, pixels are interpolated."""
    level: Literal["finest", "nearest"] = "finest"
    """Level that tiles are read from: the finest, so that all pyramids give the same tiles; or the coarsest that is not
    coarser than `mpp` (by more than 1 %), up to 4 times faster where there is one, but compressed once more (features: cosine about 0.98)."""
    decoding: Literal["full", "scaled"] = "full"
    """`scaled`: where a slide is finer than `mpp` by 2, 4 or 8, libjpeg brings JPEG tiles down by that while it decodes them: a third
    faster, other features (EfficientNet-Lite0: cosine above 0.997 where colour is stored in full, above 0.985 at 4:2:0). JPEG 2000 is
    decoded at a lower resolution of its wavelets: 1.3 times faster by 2, 3.5 times by 4, cosine above 0.997. Tile corners are then
    multiples of 8 level-0 pixels."""
    unreadable: Literal["refuse", "drop"] = "refuse"
    """A tile that cannot be decoded refuses the slide (`unreadable_region`), or is left out and counted."""
    max_tiles: int = Field(default=1_000_000, ge=1)
    """A slide with more tiles than this is refused (`too_many_tiles`)."""
    tissue: TissueSpec = TissueSpec()
    quality: QualitySpec | None = QualitySpec()
    """None: no tile is looked at for its quality."""
