"""Our stain normalisation beside the published implementations, on real H&E: largest and mean difference of a pixel's value.

    pip download --no-deps torchstain==1.4.1 histomicstk==1.4.0 --dest WHEELS
    python benchmarks/stain.py WHEELS ../shared/data/idc/patches.zip

Macenko beside torchstain's, Reinhard beside HistomicsTK's. Neither needs to be installed: torchstain brings a package
called `tests` along and HistomicsTK half a viewer; their few files are read from the wheels. Prints the numbers that
`tests/features/test_stain.py` holds ours to.
"""

import argparse
import io
import sys
import tempfile
import types
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from mil.features import stain


def patches(path: Path) -> np.ndarray:
    """64 patches of 50 px of many slides, one below the other (3200, 50, 3)."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[:: len(names) // 96]]
    return np.concatenate([np.asarray(picture) for picture in pictures if picture.size == (50, 50)][:64])


def published(folder: Path) -> dict:
    """The two functions, pixels (h, w, 3) uint8 -> the same, out of the wheels in `folder`."""
    home = Path(tempfile.mkdtemp())
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(home)
    sys.path.insert(0, str(home))
    for name in ("", ".preprocessing", ".preprocessing.color_conversion", ".preprocessing.color_normalization"):
        package = types.ModuleType(f"histomicstk{name}")  # without its `__init__`, which wants the whole of it
        package.__path__ = [str(home / f"histomicstk{name}".replace(".", "/"))]
        sys.modules[package.__name__] = package
    conversion = sys.modules["histomicstk.preprocessing.color_conversion"]
    from histomicstk.preprocessing.color_conversion.lab_to_rgb import lab_to_rgb
    from histomicstk.preprocessing.color_conversion.rgb_to_lab import rgb_to_lab

    conversion.rgb_to_lab, conversion.lab_to_rgb = rgb_to_lab, lab_to_rgb
    sys.modules["histomicstk.preprocessing"].color_conversion = conversion
    from histomicstk.preprocessing.color_normalization.reinhard import reinhard
    from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer

    return {
        "macenko": lambda pixels: NumpyMacenkoNormalizer().normalize(pixels, stains=False)[0],
        "reinhard": lambda pixels: reinhard(pixels, stain.TARGET_MEAN, stain.TARGET_SD),
    }


def ours(method: str, pixels: np.ndarray) -> np.ndarray:
    """Our normalisation of a picture, found on itself."""
    change = torch.from_numpy(stain.change_of(method, pixels.reshape(-1, 3)))[None]
    changed = stain.StainNormalisation(method, torch.device("cpu")).apply(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], change
    )
    return changed[0].permute(1, 2, 0).numpy()


def main() -> None:
    """Both methods."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("wheels", type=Path)
    arguments.add_argument("patches", type=Path)
    options = arguments.parse_args()
    pixels = patches(options.patches)
    print(f"{len(pixels) // 50} patches, mean RGB {pixels.mean((0, 1)).round(2).tolist()}")
    for method, normalise in published(options.wheels).items():
        theirs = normalise(pixels)
        apart = np.abs(ours(method, pixels) - theirs)
        print(
            f"{method}: largest difference {apart.max():.3f}, mean {apart.mean():.3f} of 255 (theirs is cut to whole numbers)"
        )
        print(
            f"  theirs: mean {theirs.mean((0, 1)).round(3).tolist()}, rows {theirs[:: len(theirs) // 4, 25][:4].tolist()}"
        )


if __name__ == "__main__":
    main()
