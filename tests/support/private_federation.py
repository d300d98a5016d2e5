"""A federation of three hospitals with differential privacy, for the mechanism and for its price."""

import logging
from pathlib import Path

from hospitals import PROTOCOL, Hospitals, make_hospitals

from mil.hospital.config import PrivacySpec
from mil.hospital.forms import Slot

PRIVATE = PrivacySpec(noise=1.0, clip=0.5, expected_batch=8, epsilon=1e6, delta=1e-3)
TRAINING = {"rounds": 3, "batch_size": 8, "lr": 0.05, "optimiser": "sgd", "scaling": "none"}
SLOTS = [Slot("A+B", 0, fold) for fold in range(3)]


def private_hospitals(folder: Path) -> Hospitals:
    """Hospitals whose protocol adds the noise of `PRIVATE`."""
    logging.disable(logging.WARNING)  # opacus and dp-accounting speak of orders that they leave out
    experiment = {**PROTOCOL["experiment"], "training": TRAINING}
    return make_hospitals(folder, experiment=experiment, privacy=PRIVATE.model_dump(mode="json"))
