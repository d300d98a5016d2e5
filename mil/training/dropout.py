"""Dropout seeds that name what they are for: the step of a learner, the patient, the tile's place in the bag."""

import numpy as np
import torch
from torch import Tensor

from mil.models.layers import mixed32


def step_key(stream: int, number: int) -> int:
    """A 32-bit key for step `number` of a learner's stream of this round."""
    return int(step_keys(np.array([stream], np.uint64), np.array([number]))[0])


def step_keys(streams: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """`step_key` of many streams (uint64) and steps, int64."""
    bits = streams ^ (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits ^ (bits >> np.uint64(29))) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def tile_keys(steps: Tensor, patients: Tensor, sizes: Tensor) -> Tensor:
    """Keys of the tiles of some bags end to end: step (), patients (bags,), sizes (bags,) -> (tiles,) int64."""
    ends = sizes.cumsum(0)
    positions = torch.arange(int(ends[-1])) - (ends - sizes).repeat_interleave(sizes)
    return combined(steps, patients.repeat_interleave(sizes), positions)


def combined(steps: Tensor, patients: Tensor, tiles: Tensor) -> Tensor:
    """One key from the step's, the patient's and the tile's place in its bag."""
    return mixed32(mixed32(patients ^ mixed32(steps)) + tiles)
