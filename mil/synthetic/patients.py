"""A seed -> patients: what their tumours are like, whether they respond, and what their files say of them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.rng import rng
from mil.synthetic.layout import Traits
from mil.synthetic.sites import SyntheticSite

RESPONSE_SLOPE = 3.2  # log odds of response for one deviation of the infiltrate
SECOND_SLIDE = 0.10  # share of patients with two slides
TIL_ERROR = 1.5  # the pathologist's error on TIL %, in deviations of the infiltrate


@dataclass(frozen=True)
class Patient:
    """A patient."""

    patient_id: str
    site: SyntheticSite
    infiltrate: float
    """How inflamed the tumour is: standard normal over patients."""
    response: int
    traits: Traits
    slides: int


def draw_patients(seed: int, site: SyntheticSite, number: int) -> list[Patient]:
    """The patients of one site. Tissue depends on the patient's own stream only; response on the site's as well."""
    names = [f"{site.name}-{k + 1:0{max(2, len(str(number)))}d}" for k in range(number)]
    infiltrate = [float(rng(seed, "infiltrate", name).standard_normal()) for name in names]
    response = _responses(seed, site, names, np.array(infiltrate))
    slides = [1 + int(rng(seed, "slides", name).random() < SECOND_SLIDE) for name in names]
    return [
        Patient(name, site, z, int(responds), _traits(z, rng(seed, "traits", name)), count)
        for name, z, responds, count in zip(names, infiltrate, response, slides, strict=True)
    ]


def _responses(seed: int, site: SyntheticSite, names: list[str], infiltrate: np.ndarray) -> np.ndarray:
    """Logistic in the infiltrate; the intercept is such that the site's share of responders holds exactly."""
    luck = np.array([rng(seed, "response", name).logistic() for name in names])
    score = RESPONSE_SLOPE * infiltrate + luck
    number = min(max(round(site.responders * len(names)), 1), len(names) - 1)
    return score >= np.sort(score)[-number]


def _traits(infiltrate: float, stream: np.random.Generator) -> Traits:
    """Lymphocytes follow the infiltrate; all else is independent of it, so that it cannot give the response away."""
    return Traits(
        lymphocytes=float(_logistic(-2.4 + 1.7 * infiltrate)),
        cellularity=float(stream.uniform(0.28, 0.68)),
        nest_um=float(stream.uniform(55, 190)),
        fat=float(max(stream.uniform(-0.10, 0.24), 0)),
        necrosis=float(max(stream.uniform(-0.25, 0.35), 0)),
        pleomorphism=float(stream.beta(2.5, 2)),
        nucleus_um=float(stream.uniform(9.2, 12.2)),
        mitoses_mm2=float(stream.gamma(2.0, 14.0)),
    )


def clinical_table(seed: int, patients: list[Patient]) -> pd.DataFrame:
    """What the hospital's files hold, a row a patient: weak hints of response, follow-up in months, event 0/1."""
    return pd.DataFrame([_clinical(patient, rng(seed, "clinical", patient.patient_id)) for patient in patients])


def _clinical(patient: Patient, stream: np.random.Generator) -> dict[str, object]:
    responds = patient.response
    # strengths about those of age, grade, nodes and Ki67 in open neoadjuvant cohorts: AUROC 0.55-0.65 each
    age = np.clip(stream.normal(53 - 3.5 * responds, 11), 26, 84)
    ki67 = 100 * _logistic(stream.normal(0.35 + 0.35 * responds, 0.9))
    grade_3 = stream.random() < 0.25 + 0.55 * patient.traits.pleomorphism + 0.12 * responds
    t_stage = stream.choice(4, p=(0.22, 0.54, 0.17, 0.07) if responds else (0.16, 0.50, 0.22, 0.12))
    n_stage = stream.choice(4, p=(0.58, 0.32, 0.07, 0.03) if responds else (0.44, 0.38, 0.12, 0.06))
    seen = patient.infiltrate + TIL_ERROR * stream.standard_normal()
    til = 5 * round(100 * _logistic(-1.3 + 0.6 * seen) / 5)
    relapse = stream.exponential(70 if not responds else 260)
    followed = stream.uniform(24, 84)
    return {
        "patient_id": patient.patient_id,
        "response": responds,
        "age": round(age),
        "grade": 3 if grade_3 else 2,
        "ki67": round(ki67),
        "t_stage": f"T{t_stage + 1}",
        "n_stage": f"N{n_stage}",
        "til_percent": max(til, 1),
        "time_months": round(max(min(relapse, followed), 0.1), 1),
        "event": int(relapse < followed),
    }


def _logistic(x: float) -> float:
    return 1 / (1 + np.exp(-x))
