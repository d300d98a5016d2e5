"""A results folder -> the arrays and pixels of single slides: tiles, features, attention, thumbnails, truth."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil import hdf5
from mil.config import Config
from mil.errors import Absent, SlideError
from mil.files import file_name
from mil.provenance import require_slide
from mil.slides.slide import open_slide
from mil.tables import slides_of
from mil.tiles.thumbnail import read_jpeg
from mil.tiles.truth import Truth, find, load_truth


class SlideFiles:
    """What lies under `folder` (`results/<cohort>/`) for every slide; a method raises `Absent` where its file is missing.

    `sites` are searched in their order; `slides(site)` is the site's slide table; `sheet_folder` is the folder of the slide
    sheet, which relative paths of slides and truth start from.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        sites: Sequence[str],
        sheet_folder: Path,
        slides: Callable[[str], pd.DataFrame],
    ) -> None:
        self._folder, self._config, self._sites = folder, config, sites
        self._sheet_folder, self._slides = sheet_folder, slides

    def thumbnail(self, site: str, slide_id: str) -> np.ndarray:
        """The slide's thumbnail, uint8 (h, w, 3)."""
        path = self._folder / "sites" / site / "thumbnails" / f"{file_name(slide_id)}.jpg"
        if not path.is_file():
            raise Absent(f"sites/{site}/thumbnails/{slide_id}.jpg is not among the results")
        return read_jpeg(path)

    def attention(self, site: str, experiment: str, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Level-0 corners (tiles, 2) and attention (tiles,) of one slide."""
        path = self._attention_folder(site, experiment) / f"{file_name(slide_id)}.h5"
        if not path.is_file():
            raise Absent(f"{experiment} has no attention for slide {slide_id} of site {site}")
        (coords, attention), about = hdf5.read_with_attributes(path, "coords", "attention")
        require_slide(path, slide_id, about)
        return coords, attention

    def has_attention(self, site: str, experiment: str, slide_id: str) -> bool:
        """Whether attention of this slide was written."""
        return (self._attention_folder(site, experiment) / f"{file_name(slide_id)}.h5").is_file()

    def geometry(self, site: str, slide_id: str) -> dict[str, Any]:
        """What `mil tile` recorded of the slide: mpp, width, height, spec, ... (root attributes of its tiles file)."""
        path = self._folder / "sites" / site / "tiles" / f"{file_name(slide_id)}.h5"
        if site in self._config.slides.features:
            raise Absent(f"site {site} joined with features alone (slides.features), so there are no pixels to show")
        if not path.is_file():
            raise Absent(f"sites/{site}/tiles/{slide_id}.h5 is not among the results")
        attributes = hdf5.attributes(path)
        require_slide(path, slide_id, attributes)
        return attributes

    def features(self, site: str, encoder: str, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Level-0 corners (tiles, 2) and features (tiles, width) of one slide."""
        path = self._folder / "sites" / site / "features" / encoder / f"{file_name(slide_id)}.h5"
        if not path.is_file():
            raise Absent(f"sites/{site}/features/{encoder}/{slide_id}.h5 is not among the results")
        (coords, features), about = hdf5.read_with_attributes(path, "coords", "features")
        require_slide(path, slide_id, about)
        return coords, features

    def bag_attention(self, site: str, experiment: str, slides: object) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Slide, corners (tiles, 2) and attention (tiles,) of each of a bag's `slides` that has attention."""
        there = [slide for slide in slides_of(slides) if self.has_attention(site, experiment, slide)]
        return [(slide, *self.attention(site, experiment, slide)) for slide in there]

    def bag_features(self, site: str, encoder: str, slides: object) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Slide, corners (tiles, 2) and features (tiles, width) of each of a bag's `slides`."""
        return [(slide, *self.features(site, encoder, slide)) for slide in slides_of(slides)]

    def encoder_facts(self, encoder: str) -> dict[str, Any]:
        """What the features' files record of their encoder, and `width`; empty where no features are on this machine."""
        for site in self._sites:
            for path in sorted((self._folder / "sites" / site / "features" / encoder).glob("*.h5"))[:1]:
                (features,) = hdf5.read(path, "features")
                return {**hdf5.attributes(path), "width": features.shape[1]}
        return {}

    def has_features(self, encoder: str) -> bool:
        """Whether any site holds features of this encoder."""
        return any(any((self._folder / "sites" / site / "features" / encoder).glob("*.h5")) for site in self._sites)

    def slide_path(self, site: str, slide_id: str) -> Path:
        """Where the slide itself is; raises `Absent` where it is not on this machine (any more)."""
        rows = self._slides(site)
        rows = rows[rows["slide_id"] == slide_id]
        path = find(str(rows["path"].iloc[0]), self._sheet_folder) if len(rows) else None
        if path is None and len(rows):
            folder = self._sheet_folder / str(rows["path"].iloc[0])
            path = folder if folder.is_dir() else None
        if path is None:
            raise Absent(f"slide {slide_id} of site {site} is not on this machine, so its pixels cannot be shown")
        return path

    def tile_pixels(
        self, site: str, wanted: Iterable[tuple[str, int, int]], size_px: int
    ) -> dict[tuple[str, int, int], np.ndarray]:
        """Tiles (size_px, size_px, 3) by (slide, x, y), of the size in microns that the run's tiles have; a slide is opened once."""
        wanted = list(wanted)
        mpp = self._config.tiles.size_px * self._config.tiles.mpp / size_px
        pixels = {}
        for slide_id in dict.fromkeys(slide for slide, _, _ in wanted):
            try:
                known = float(self.geometry(site, slide_id)["mpp"])
                with open_slide(self.slide_path(site, slide_id), known) as slide:
                    for name, x, y in wanted:
                        if name == slide_id:
                            pixels[name, x, y] = slide.read_tile(x, y, size_px, mpp)
            except SlideError as error:
                raise Absent(
                    f"slide {slide_id} of site {site} could be read when it was tiled, but no longer: {error}"
                ) from error
        return pixels

    @cached_property
    def truth(self) -> Truth:
        """Where each slide's truth is; raises `Absent` for a cohort without."""
        if self._config.truth is None:
            raise Absent("this cohort has no truth for its tiles (`truth:` in the cohort file)")
        return load_truth(self._config.truth, self._sheet_folder)

    def tile_truth(self, site: str, slide_id: str, coords: np.ndarray) -> np.ndarray | None:
        """Share of each tile that is positive; none where the slide's truth is not known."""
        about, tiles = self.geometry(site, slide_id), self._config.tiles
        mpp = float(about["mpp"])
        return self.truth.share(
            slide_id, coords, tiles.size_px * tiles.mpp, mpp, (about["width"] * mpp, about["height"] * mpp)
        )

    def _attention_folder(self, site: str, experiment: str) -> Path:
        return self._folder / "sites" / site / "attention" / experiment
