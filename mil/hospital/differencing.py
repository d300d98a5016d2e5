"""Whether sums over many sets of patients give a single patient away: a question of linear algebra, answered beforehand.

Sums of features, covariates, targets or classes are asked for over the training patients of every fold. Whoever knows the
folds can solve them like equations. Where a patient follows from the sums, the plan is refused before anything is sent.
"""

from collections.abc import Sequence

import numpy as np

from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.forms import slots
from mil.hospital.local import LocalWork

EXACT = 1e-6
"""Share of a patient's own direction that may lie outside the sums, where it still counts as inside."""


def check_plan(protocol: FederationSpec, work: LocalWork) -> None:
    """Raise where the sums that the protocol asks for determine a patient of the site."""
    if not (work.shapes.measured or work.shapes.balanced):
        return
    sets = [work.train_patients(slot) for phase in ("inner", "refit") for slot in slots(protocol, phase)]
    alone = determined(sets, len(work.cohort.patients))
    if len(alone):
        asked = [*work.shapes.measured, *(["classes"] if work.shapes.balanced else [])]
        ways = "scaling site, " * ("features" in asked) + "fewer folds or repeats"
        raise MilError(
            f"federation.yaml: the sums of {' and '.join(asked)} over {len(sets)} sets of patients determine {len(alone)} of the "
            f"{len(work.cohort.patients)} patients of site {work.site} one by one; use {ways}. Nothing was sent"
        )


def determined(sets: Sequence[np.ndarray], patients: int) -> np.ndarray:
    """Numbers of the patients whose own values follow from the sums over `sets` (patient numbers each)."""
    matrix = np.zeros((len(sets), patients))
    for row, members in enumerate(sets):
        matrix[row, members] = 1.0
    matrix = np.unique(matrix, axis=0)
    _, strengths, directions = np.linalg.svd(matrix, full_matrices=False)
    basis = directions[strengths > strengths.max(initial=0.0) * max(matrix.shape) * np.finfo(float).eps]
    return np.nonzero((basis**2).sum(0) > 1 - EXACT)[0]
