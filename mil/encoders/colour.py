"""Mean and standard deviation of RGB: the colour-only baseline that every encoder has to beat."""

import torch

from mil.encoders.entry import Entry, enter


class Colour(torch.nn.Module):
    """(tiles, 3, h, w) in 0-1 -> (tiles, 6): mean of R, G, B, then their standard deviations over the tile's pixels."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Six numbers a tile."""
        deviation, mean = torch.std_mean(tiles.float(), dim=(2, 3), correction=0)
        return torch.cat([mean, deviation], dim=1)


enter(
    Entry(
        name="colour",
        summary="mean and standard deviation of RGB, the colour-only baseline",
        make=Colour,
        width=6,
        input_px=None,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        mpp=None,
        pooling="mean and standard deviation over the tile",
        parameters=0,
        licence="Apache-2.0",
        weights_licence="none needed",
        reference="none",
    )
)
