"""The patients and slides of `cohort_results`, drawn from a seeded generator."""

from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from mil.rng import rng

SITES = {"north": "train", "south": "train", "east": "external", "west": "external"}
TINT = {"north": (1, 1, 1), "south": (1.03, 0.95, 1.0), "east": (0.95, 0.98, 1.03), "west": (1.02, 1.0, 0.94)}
MPP, TILE_PX, TILE_MPP, THUMB_MPP = 2.0, 32, 2.0, 8.0
WIDTH, HEIGHT = 960, 704


@dataclass
class Slide:
    slide_id: str
    patient_id: str
    site: str
    pixels: np.ndarray
    truth: np.ndarray


def draw_patients(patients_a_site: int, sites: list[str]) -> pd.DataFrame:
    rows = []
    initials = [site[0].upper() for site in sites]
    for place, site in enumerate(sites):
        initial = initials[place] if len(set(initials)) == len(initials) else f"P{place + 1:02d}-"
        stream = rng(0, "patients", site)
        for number in range(patients_a_site):
            density = float(stream.beta(2, 3))
            response = bool(stream.random() < 1 / (1 + np.exp(-(7 * (density - 0.4)))))
            hazard = 0.03 * np.exp(-1.2 * response)
            time, censored = float(stream.exponential(1 / hazard)), float(stream.uniform(24, 72))
            rows.append(
                {
                    "patient_id": f"{initial}{number + 1:02d}",
                    "site": site,
                    "density": density,
                    "response": str(int(response)),
                    "age": str(int(np.clip(stream.normal(52 + 4 * (site == "east"), 11), 28, 84))),
                    "grade": str(int(stream.choice([2, 3], p=[0.4, 0.6]))),
                    "ki67": str(int(np.clip(stream.normal(40 + 25 * density, 14), 2, 95))),
                    "t_stage": str(stream.choice(["T1", "T2", "T3"], p=[0.3, 0.5, 0.2])),
                    "n_stage": str(stream.choice(["N0", "N1", "N2"], p=[0.5, 0.35, 0.15])),
                    "til_percent": str(int(np.clip(100 * density + stream.normal(0, 14), 0, 95))),
                    "time_months": f"{min(time, censored):.1f}",
                    "event": str(int(time < censored)),
                }
            )
    table = pd.DataFrame(rows)
    table.loc[[3 % len(table), (patients_a_site + 5) % len(table)], "ki67"] = ""
    table.loc[(patients_a_site * 2 + 1) % len(table), "response"] = ""
    return table


def draw_slides(patient) -> list[Slide]:
    stream = rng(0, "slides", patient.patient_id)
    count = 2 if stream.random() < 0.2 else 1
    return [draw_slide(f"{patient.patient_id}-{n + 1}", patient, stream) for n in range(count)]


def draw_slide(slide_id: str, patient, stream: np.random.Generator) -> Slide:
    """Pink tissue with dark lymphocyte patches; truth at 4 microns a pixel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    smooth = sum(
        cv2.resize(
            stream.normal(size=(cells, cells)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        / cells**0.4
        for cells in (4, 8, 16)
    )
    centre = ((x - WIDTH / 2) / (WIDTH * 0.46)) ** 2 + ((y - HEIGHT / 2) / (HEIGHT * 0.45)) ** 2
    tissue = centre + 0.12 * smooth < 0.95
    patches = cv2.resize(
        stream.normal(size=(22, 30)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    level = np.quantile(patches[tissue], 1 - 0.03 - 0.35 * patient.density)
    lymphocytes = tissue & (patches > level)
    pixels = np.full((HEIGHT, WIDTH, 3), 246, np.float32)
    grain = stream.normal(0, 9, (HEIGHT, WIDTH, 1)).astype(np.float32)
    stroma = np.array([226, 176, 203], np.float32) + 10 * smooth[..., None] + grain
    dark = np.array([126, 84, 158], np.float32) + 2 * grain
    pixels = np.where(tissue[..., None], stroma, pixels)
    pixels = np.where(lymphocytes[..., None], dark, pixels) * np.array(TINT.get(patient.site, (1, 1, 1)), np.float32)
    truth = cv2.resize(lymphocytes.astype(np.uint8) * 255, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    return Slide(slide_id, patient.patient_id, patient.site, np.clip(pixels, 0, 255).astype(np.uint8), truth)
