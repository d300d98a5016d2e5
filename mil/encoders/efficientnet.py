"""EfficientNet-Lite0 with weights from a Python package: features without any network, honest but modest."""

from typing import Any

import timm
import torch

from mil.encoders.state import StateDict


class TruncatedEfficientNet(torch.nn.Module):
    """Blocks 0-4 of EfficientNet-Lite0; the means of blocks 3 and 4 over the plane, side by side (80 + 112).

    The later blocks are ImageNet's object parts; the middle ones say more of texture and cost a third. Stem and block 0 stay
    in fp32: their weights differ by orders of magnitude between channels, and in bf16 they alone take faint tiles' cosine
    down to 0.99.
    """

    def __init__(self) -> None:
        super().__init__()
        whole: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.conv_stem, self.bn1 = whole.conv_stem, whole.bn1
        self.blocks = torch.nn.ModuleList(list(whole.blocks.children())[:5])

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Normalised (tiles, 3, 128, 128) -> (tiles, 192)."""
        plane = self.blocks[0](self.bn1(self.conv_stem(tiles.to(self.conv_stem.weight.dtype))))
        plane = plane.to(self.dtype)
        means = []
        for block in self.blocks[1:]:
            plane = block(plane)
            means.append(plane.float().mean((2, 3)))
        return torch.cat(means[2:], dim=1)

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of all but stem and block 0."""
        return next(self.blocks[1].parameters()).dtype


def load_in_order(module: torch.nn.Module, state: StateDict) -> None:
    """Map the package's tensors onto timm's names by their order; shapes must agree one by one."""
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = [name for name in whole.state_dict() if not name.endswith("num_batches_tracked")]
    given = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    mapped = dict(zip(names, given, strict=True))
    kept = set(module.state_dict())
    missing, _ = module.load_state_dict(
        {name: mapped[name] for name in names if name in kept}, strict=False, assign=True
    )
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise RuntimeError(f"no weights for {', '.join(missing)}")
