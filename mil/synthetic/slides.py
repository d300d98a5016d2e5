"""One slide of the cohort: layout, drawing, stain, scanner, and the truth beside it."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mil.files import replacing
from mil.rng import rng
from mil.synthetic import flaws
from mil.synthetic.drawing import SCALE, draw
from mil.synthetic.layout import Layout, lay_out
from mil.synthetic.nuclei import draw_banks, tumour_kind
from mil.synthetic.patients import Patient
from mil.synthetic.stains import colour, section
from mil.synthetic.writing import write_slide

UPRIGHT = 0.3  # share of slides whose cores lie along the slide's height


@dataclass(frozen=True)
class SlideTask:
    """All that one slide is made from."""

    seed: int
    patient: Patient
    slide_id: str
    flaw: str | None
    path: Path
    truth: Path


def make_slide(task: SlideTask) -> str:
    """Write the slide's file and its truth; returns its id."""
    cv2.setNumThreads(1)  # the slides themselves run side by side
    pixels, truth = picture(task.seed, task.patient, task.slide_id)
    site = task.patient.site
    if task.flaw == "blank":
        pixels, truth = flaws.blank(pixels, site.stain, rng(task.seed, "blank", task.slide_id)), np.zeros_like(truth)
    if task.flaw == "pen_marks":
        pixels = flaws.pen_marks(pixels, rng(task.seed, "pen", task.slide_id))
    with replacing(task.truth) as partial:
        partial.write_bytes(cv2.imencode(".png", truth)[1].tobytes())
    with replacing(task.path) as partial:
        write_slide(partial, pixels, site.scanner, task.slide_id, task.flaw not in {"no_mpp", "mpp_in_sheet"})
        if task.flaw == "truncated":
            flaws.truncate(partial)
    return task.slide_id


def picture(seed: int, patient: Patient, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The slide as RGB at `DRAW_MPP` and its truth at `TRUTH_UM`, both uint8."""
    layout = lay_out(patient.traits, rng(seed, "layout", slide_id))
    pixels, truth = _pixels(seed, patient, slide_id, layout), layout.truth()
    if rng(seed, "upright", slide_id).random() < UPRIGHT:
        pixels, truth = np.ascontiguousarray(pixels.swapaxes(0, 1)), np.ascontiguousarray(truth.T)
    return pixels, truth


def _pixels(seed: int, patient: Patient, slide_id: str, layout: Layout) -> np.ndarray:
    stain = section(patient.site.stain, rng(seed, "section", slide_id))
    tumour = tumour_kind(patient.traits.nucleus_um, patient.traits.pleomorphism)
    banks = draw_banks(tumour, rng(seed, "nuclei", slide_id))
    height, width = layout.shape
    pixels = np.full((height * SCALE, width * SCALE, 3), stain.glass, np.uint8)
    for number, (rows, columns, piece) in enumerate(layout.pieces()):
        stained = draw(piece, patient.traits, banks, rng(seed, "piece", slide_id, number))
        window = pixels[rows.start * SCALE : rows.stop * SCALE, columns.start * SCALE : columns.stop * SCALE]
        np.minimum(window, colour(stained, stain), out=window)
    return pixels
