"""What is wrong in the demo cohort, on purpose: every flaw, whom it befalls, and what it does to pixels and files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mil.synthetic.patients import Patient
from mil.synthetic.stains import Stain

TRUNCATED_TO = 0.6  # of the file's bytes


@dataclass(frozen=True)
class Flaw:
    """A kind of flaw and where it is put."""

    name: str
    site: str
    patient: int
    """Which of the site's patients, from 0."""
    slide: int
    """Which of the patient's slides, from 0; made if the patient has fewer. The others stay sound."""
    state: str
    """The state that the slide must come out with."""
    remark: str


FLAWS = (
    Flaw("truncated", "north", 1, 1, "unreadable", "the file ends after 60 % of its bytes"),
    Flaw("no_mpp", "south", 1, 0, "no_mpp", "neither the file nor the sheet gives the mpp"),
    Flaw("pen_marks", "east", 0, 0, "ok", "a felt pen drew on the glass and over tissue"),
    Flaw("blank", "east", 1, 1, "no_tissue", "empty glass"),
    Flaw("no_label", "west", 0, 0, "no_label", "the patient's response is unknown"),
    Flaw("mpp_in_sheet", "west", 1, 0, "ok", "the file gives no mpp, the sheet does"),
)


def flaws_by_slide(patients: list[Patient]) -> dict[str, Flaw]:
    """slide_id -> its flaw."""
    flaws = {}
    for flaw in FLAWS:
        of_site = [patient for patient in patients if patient.site.name == flaw.site]
        flaws[slide_id(of_site[flaw.patient], flaw.slide)] = flaw
    return flaws


def slide_ids(patient: Patient, flaws: Mapping[str, Flaw]) -> list[str]:
    """The patient's slides, with those that a flaw needs."""
    number = patient.slides
    while slide_id(patient, number) in flaws:
        number += 1
    return [slide_id(patient, k) for k in range(number)]


def slide_id(patient: Patient, number: int) -> str:
    """The name of a patient's slide, counted from 0."""
    return f"{patient.patient_id}-{number + 1}"


def flaws_table(flaws: Mapping[str, Flaw]) -> pd.DataFrame:
    """flaw, state, site, patient_id, slide_id, remark."""
    return pd.DataFrame(
        [
            {"flaw": f.name, "state": f.state, "site": f.site, "patient_id": slide.rsplit("-", 1)[0], "slide_id": slide, "remark": f.remark}
            for slide, f in flaws.items()
        ]
    )  # fmt: skip


def blank(pixels: np.ndarray, stain: Stain, stream: np.random.Generator) -> np.ndarray:
    """Empty glass of the slide's size, with a few specks of dust."""
    glass = np.full_like(pixels, stain.glass)
    height, width = glass.shape[:2]
    for _ in range(12):
        centre = (int(stream.integers(width)), int(stream.integers(height)))
        axes = (int(stream.integers(2, 9)), int(stream.integers(1, 5)))
        grey = tuple(int(part * stream.uniform(0.55, 0.9)) for part in stain.glass)
        cv2.ellipse(glass, centre, axes, stream.uniform(0, 180), 0, 360, grey, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(glass, (0, 0), 1.5)


def pen_marks(pixels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Strokes of a green and a black felt pen: ink darkens what lies under it."""
    height, width = pixels.shape[:2]
    light = pixels.astype(np.float32)
    # an arc beside the tissue and a stroke that crosses it
    sweep = np.linspace(0.15, 0.85, 60)
    arc = np.stack([sweep * width, height * (0.30 - 0.26 * np.sin(np.pi * sweep))], axis=1)
    across = np.stack([width * (0.70 + 0.08 * np.sin(5 * sweep)), height * sweep], axis=1)
    for line, breadth_px, passes in ((arc, 110, (0.10, 0.55, 0.38)), (across, 80, (0.16, 0.17, 0.22))):
        cover = np.zeros((height, width), np.uint8)
        points = (line + stream.normal(0, 6, line.shape)).round().astype(np.int32)
        cv2.polylines(cover, [points.reshape(-1, 1, 2)], False, 255, breadth_px, cv2.LINE_AA)
        ink = cv2.GaussianBlur(cover, (0, 0), 6).astype(np.float32)[..., None] / 255
        streaks = 0.85 + 0.15 * cv2.GaussianBlur(stream.random((height, width, 1), np.float32), (0, 0), 9)[..., None]
        light *= 1 - ink * streaks * (1 - np.array(passes, np.float32))
    return light.round().astype(np.uint8)


def truncate(path: Path) -> None:
    """Cut a file off, as a broken copy is."""
    os.truncate(path, int(path.stat().st_size * TRUNCATED_TO))
