"""Mean and standard deviation of RGB: the colour-only baseline that every encoder has to beat."""

import torch


class Colour(torch.nn.Module):
    """(tiles, 3, h, w) in 0-1 -> (tiles, 6): mean of R, G, B, then their standard deviations over the tile's pixels."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Six numbers a tile."""
        deviation, mean = torch.std_mean(tiles.float(), dim=(2, 3), correction=0)
        return torch.cat([mean, deviation], dim=1)
