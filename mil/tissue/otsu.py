"""Thumbnail -> tissue by one threshold on saturation or on grey (Otsu 1979), as most tools do."""

import cv2
import numpy as np

from mil.specs.slides import TissueSpec
from mil.tissue.registry import TISSUE


@TISSUE.register("otsu_saturation")
def otsu_saturation(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Pixels more saturated than Otsu's threshold on the median-filtered saturation."""
    saturation = cv2.medianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)[..., 1], 7)
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # Otsu splits even a bare slide in two; glass is never more saturated than this (8 of 255).
    return saturation > max(threshold, 8)


@TISSUE.register("otsu_grey")
def otsu_grey(thumbnail: np.ndarray, mpp: float, spec: TissueSpec) -> np.ndarray:
    """Pixels darker than Otsu's threshold on the median-filtered grey image."""
    grey = cv2.medianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), 7)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return grey < min(threshold, 235)
