"""ResNet-50 on ImageNet, cut after its third stage as CLAM does or whole as FLamby does."""

import torch
import torchvision


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
