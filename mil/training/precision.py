"""Where and in which arithmetic a run is trained: the GPU that no other job has claimed, bf16 there, fp32 on a CPU."""

from dataclasses import dataclass

import torch

from mil.features.accelerate import choose_precision, exact_fp32
from mil.features.device import best_device


@dataclass(frozen=True)
class Computing:
    """The device, and the precision of matrix products: fp32 or bf16."""

    device: torch.device
    precision: str

    @classmethod
    def best(cls, wanted: str) -> "Computing":
        """The best device of this machine; `wanted` is fp32, bf16, or auto: bf16 on a GPU that has it, fp32 elsewhere."""
        device = best_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            exact_fp32()
        return cls(device, resolved(wanted, device))

    def stated(self) -> dict[str, str]:
        """For the run's spec.json."""
        return {"device": self.device.type, "precision": self.precision}


def resolved(wanted: str, device: torch.device) -> str:
    """`wanted`, or what auto means on the device. Weights, sums and the optimiser are fp32 always."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and choose_precision("auto", device) == "bf16" else "fp32"
