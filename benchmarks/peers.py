"""The way of other pipelines from slides to features, for `features_gpu.py`: OpenSlide in DataLoader workers."""

import time
from pathlib import Path

import h5py
import numpy as np
import torch
from networks import DEVICE, SIZE, Model, half, plain, wait

READ_PX = 512  # of level 0, read for one tile


class OpenSlideTiles(torch.utils.data.Dataset):
    """What peers' datasets do: open the slide in the worker, read a region, resize with Pillow, normalise."""

    def __init__(self, paths: list[str], coords: np.ndarray) -> None:
        from torchvision import transforms

        self.paths, self.coords, self.slides = paths, coords, {}
        self.transform = transforms.Compose(
            [
                transforms.Resize(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths) * len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        import openslide

        path = self.paths[index // len(self.coords)]
        if path not in self.slides:
            self.slides = {path: openslide.OpenSlide(path)}
        x, y = self.coords[index % len(self.coords)]
        region = self.slides[path].read_region((int(x), int(y)), 0, (READ_PX, READ_PX)).convert("RGB")
        return self.transform(region)


def peers(model: Model, folder: Path, names: list[str], coords: np.ndarray, workers: int) -> float:
    """Tiles per second of the peers' way, on slides `names` of `folder`; the start of the workers is not counted."""
    net = plain(model)
    tiles = OpenSlideTiles([str(folder / f"{name}.tif") for name in names], coords)
    loader = torch.utils.data.DataLoader(
        tiles, batch_size=SIZE.batch, num_workers=workers, pin_memory=DEVICE.type == "cuda", prefetch_factor=2
    )
    found, count, began = [], 0, 0.0
    with torch.inference_mode(), half():
        for number, batch in enumerate(loader):
            found.append(net(batch.to(DEVICE, non_blocking=True)).float().cpu().numpy())
            if number == 2:
                wait()
                began, count = time.perf_counter(), 0
            elif number > 2:
                count += len(batch)
                if time.perf_counter() - began > SIZE.peers_seconds:
                    break
    with h5py.File(folder / "peers.h5", "w") as file:
        file.create_dataset("features", data=np.concatenate(found))
    rate = count / (time.perf_counter() - began)
    del loader
    return rate
