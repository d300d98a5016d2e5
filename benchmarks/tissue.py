"""Tissue methods against histolab's published masks, and the CPU they take on a large thumbnail, side by side.

python benchmarks/tissue.py
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from mil.slides.slide import open_slide
from mil.specs.slides import TissueSpec
from mil.tissue import find_tissue
from mil.tissue.registry import TISSUE

SHARED = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
# The TCGA file does not say its mpp; both of its likely values are tried.
SLIDES = {
    "CMU-1-Small-Region": ("cmu-1-small-region.svs", "tissue-mask-cmu-1-small-region.npy", None),
    "TCGA-CR-7395 at 0.25": ("tcga-cr-7395-01a-01-ts1.svs", "tissue-mask-tcga-cr-7395.npy", 0.25),
    "TCGA-CR-7395 at 0.50": ("tcga-cr-7395-01a-01-ts1.svs", "tissue-mask-tcga-cr-7395.npy", 0.5),
}


def main() -> None:
    cv2.setNumThreads(1)
    methods = [name for name in TISSUE if name != "mask"]
    print("Intersection over union with the published mask: at a tenth of the slide's size / at the default 8 microns")
    print(" " * 24 + "".join(f"{name:>20s}" for name in methods))
    pixels = None
    for name, (file, reference, mpp) in SLIDES.items():
        truth = np.load(SHARED / "reference" / "tissue_masks" / reference)
        with open_slide(SHARED / "slides" / file, mpp) as slide:
            tenth, tenth_mpp = slide.thumbnail(slide.mpp * 10)[: truth.shape[0], : truth.shape[1]], slide.mpp * 10
            default = slide.thumbnail(TissueSpec().mpp)
        pixels = tenth
        cells = []
        for method in methods:
            spec = TissueSpec(method=method)
            small = find_tissue(default, spec.mpp, spec).astype(np.uint8)
            resized = cv2.resize(small, truth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            cells.append(f"{iou(find_tissue(tenth, tenth_mpp, spec), truth):.3f} / {iou(resized, truth):.3f}")
        print(f"{name:24s}" + "".join(f"{cell:>20s}" for cell in cells))
    large = cv2.resize(pixels, (3200, 2500))
    print("Seconds of CPU on a thumbnail of 3200 x 2500 (a section of 26 x 20 mm), one thread, best of three")
    cells = []
    for method in methods:
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            find_tissue(large, 8.0, TissueSpec(method=method))
            best = min(best, time.process_time() - start)
        cells.append(f"{best:.3f}")
    print(" " * 24 + "".join(f"{cell:>20s}" for cell in cells))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


if __name__ == "__main__":
    main()
