"""ResNet-50 on ImageNet, cut after its third stage as CLAM does or whole as FLamby does."""

import torch
import torchvision

from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, Entry, enter
from mil.encoders.state import StateDict, load_strictly
from mil.encoders.weights import UrlFile

# torchvision's ResNet50_Weights.IMAGENET1K_V1; the name carries the first digits of the hash.
SOURCE = UrlFile(
    url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    page="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html",
    sha256="0676ba61",
)


class ResNet50(torch.nn.Module):
    """The first `stages` stages of ResNet-50, averaged over the plane: 1024 wide after three, 2048 after four."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        whole = torchvision.models.resnet50()
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.stages = [f"layer{number}" for number in range(1, stages + 1)]
        for stage in self.stages:
            self.add_module(stage, getattr(whole, stage))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors of a batch."""
        plane = self.maxpool(self.relu(self.bn1(self.conv1(tiles))))
        for stage in self.stages:
            plane = self.get_submodule(stage)(plane)
        return plane.mean((2, 3))


def load_torchvision(module: torch.nn.Module, state: StateDict) -> None:
    """torchvision's tensors, without those of the stages that were cut off."""
    known = module.state_dict()
    load_strictly(module, {name: tensor for name, tensor in state.items() if name in known})


for name, stages, width, parameters, users in (
    ("resnet50", 4, 2048, 23_508_032, "whole, as FLamby uses it"),
    ("resnet50_layer3", 3, 1024, 8_543_296, "cut after layer 3, as CLAM uses it"),
):
    enter(
        Entry(
            name=name,
            summary=f"ResNet-50 (ImageNet), {users}",
            make=lambda stages=stages: ResNet50(stages),
            width=width,
            input_px=224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            mpp=None,
            pooling=f"mean over the plane after layer {stages}",
            parameters=parameters,
            published=25_557_032 - 2_049_000 if stages == 4 else None,  # less the 1000-class layer
            source=SOURCE,
            load=load_torchvision,
            licence="BSD-3-Clause (torchvision)",
            weights_licence="BSD-3-Clause; trained on ImageNet",
            reference="He et al. 2016, https://doi.org/10.1109/CVPR.2016.90",
        )
    )
