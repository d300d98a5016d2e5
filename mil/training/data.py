"""What an engine trains on and how: tiles, targets, covariates and sites of all bags, and the method of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mil.training.sources import Source

PARTS = ("mean", "deviation")


@dataclass(frozen=True)
class Method:
    """How a step is taken; the same for all learners."""

    optimiser: str = "adamw"
    momentum: float = 0.0
    clip_norm: float | None = None
    precision: str = "fp32"
    """fp32 or bf16."""

    @property
    def second(self) -> bool:
        """Whether the optimiser keeps a second moment of the gradient."""
        return self.optimiser != "sgd"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers in matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def arithmetic(self, device: torch.device) -> torch.autocast:
        """Inside, matrix products are computed in that type."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass
class Data:
    """What the models learn from: tiles, and a row of targets and covariates for every bag."""

    source: Source
    width: int
    targets: Tensor
    patients: Tensor
    """A different number for each patient (bags,) int64."""
    covariates: Tensor | None = None
    sites: Tensor | None = None
    """Number of each bag's site (bags,) int64, where features are scaled site by site."""

    def known(self, bags: Tensor, buffers: dict[str, Tensor]) -> Tensor | None:
        """Covariates of each learner's `bags` (learners, bags, covariates), scaled; the mean where one is not known."""
        if self.covariates is None:
            return None
        mean, deviation = (buffers[f"covariates.{name}"].unsqueeze(1) for name in PARTS)
        return self.covariates[bags].sub_(mean).div_(deviation).nan_to_num_(0.0)
