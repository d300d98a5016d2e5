"""Stain normalisation is that of the published implementations, on real H&E, and reaches the features."""

import io
import zipfile

import numpy as np
import pytest
import tifffile
import torch
from feature_slides import make_shard, write_tiles
from PIL import Image

from mil import hdf5
from mil.config import EncoderSpec
from mil.features.shard import extract_shard
from mil.features.stain import (
    TARGET_MEAN,
    TARGET_SD,
    TARGET_STAINS,
    TARGET_STRENGTH,
    StainNormalisation,
    change_of,
    reinhard_of,
)
from mil.progress import quiet

# What `benchmarks/stain.py` prints of torchstain 1.4.1 (Macenko) and HistomicsTK 1.4.0 (Reinhard) on these pixels: the mean
# of their result, and four pixels of column 25. Theirs are cut to whole numbers.
PUBLISHED = {
    "macenko": ([203.828, 170.843, 189.072], [[196, 160, 186], [141, 96, 137], [126, 85, 128], [222, 218, 227]]),
    "reinhard": ([193.176, 139.005, 184.549], [[183, 124, 200], [133, 79, 135], [119, 71, 136], [224, 201, 226]]),
}


@pytest.fixture(scope="module")
def pixels(shared):
    """64 real patches of many slides, one below the other: (3200, 50, 3)."""
    with zipfile.ZipFile(shared / "data/idc/patches.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[:: len(names) // 96]]
    return np.concatenate([np.asarray(picture) for picture in pictures if picture.size == (50, 50)][:64])


def ours(method, pixels):
    change = change_of(method, pixels.reshape(-1, 3))
    tiles = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    cpu = torch.device("cpu")
    return StainNormalisation(method, cpu).apply(tiles, torch.from_numpy(change)[None])[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("method", PUBLISHED)
def test_normalised_as_the_published_implementations_do(method, pixels):
    mean, some = PUBLISHED[method]
    changed = ours(method, pixels)
    assert np.floor(changed).mean((0, 1)) == pytest.approx(mean, abs=0.01)
    assert np.floor(changed[:: len(pixels) // 4, 25][:4]) == pytest.approx(np.array(some), abs=1)


def macenko_by_the_paper(pixels):
    """Macenko et al. 2009, steps 1 to 8, with a singular value decomposition as they have it."""
    density = -np.log((pixels.reshape(-1, 3).astype(float) + 1) / 240)
    stained = density[density.min(axis=1) >= 0.15]
    _, _, axes = np.linalg.svd(stained - stained.mean(0), full_matrices=False)
    first, second = (axis * np.sign(axis.sum()) if axis is axes[0] else axis for axis in axes[:2])
    along, across = stained @ first, stained @ second
    angles = np.degrees(np.arctan2(across, along))
    ends = [np.radians(np.percentile(angles, percent)) for percent in (1, 99)]
    vectors = [np.cos(end) * first + np.sin(end) * second for end in ends]
    haematoxylin, eosin = sorted(vectors, key=lambda vector: -vector[0])
    stains = np.array([haematoxylin, eosin]).T
    amounts = np.linalg.inv(stains.T @ stains) @ stains.T @ density.T
    amounts *= (TARGET_STRENGTH / np.percentile(amounts, 99, axis=1))[:, None]
    return (240 * np.exp(-(TARGET_STAINS @ amounts))).T.reshape(pixels.shape).clip(0, 255)


def reinhard_by_the_paper(pixels):
    """Reinhard et al. 2001, equations 4 to 11, channel by channel."""
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    long = np.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
    middle = np.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
    short = np.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
    space = [
        (long + middle + short) / np.sqrt(3),
        (long + middle - 2 * short) / np.sqrt(6),
        (long - middle) / np.sqrt(2),
    ]
    light, alpha, beta = (
        (plane - plane.mean()) / plane.std() * deviation + mean
        for plane, mean, deviation in zip(space, TARGET_MEAN, TARGET_SD, strict=True)
    )
    light, alpha, beta = light / np.sqrt(3), alpha / np.sqrt(6), beta / np.sqrt(2)
    cones = np.exp([light + alpha + beta, light + alpha - beta, light - 2 * alpha])
    # the paper's printed inverse (4.4679 -3.5873 0.1193; ...) is rounded; this is the exact one
    back = np.linalg.inv([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    return np.moveaxis(np.tensordot(back, cones, 1), 0, -1).clip(0, 255)


@pytest.mark.parametrize(
    ("method", "by_the_paper"), [("macenko", macenko_by_the_paper), ("reinhard", reinhard_by_the_paper)]
)
def test_normalised_as_the_papers_say(method, by_the_paper, pixels):
    assert np.abs(ours(method, pixels) - by_the_paper(pixels)).max() < 0.05


def test_reinhard_leaves_pixels_that_are_the_targets_and_black_has_a_colour_too(pixels):
    once = ours("reinhard", pixels).round().astype(np.uint8)
    assert np.abs(reinhard_of(once.reshape(-1, 3)) - np.concatenate([TARGET_MEAN, TARGET_SD])).max() < 0.15
    black = pixels.copy()
    black[0, 0] = 0
    assert np.isfinite(ours("reinhard", black)).all()


@pytest.mark.parametrize("method", PUBLISHED)
def test_slides_are_normalised_each_by_itself_before_the_encoder(method, tmp_path):
    slides = make_shard(tmp_path, {"a": 9, "b": 4})
    spec = EncoderSpec(name="colour", stain=method, precision="fp32")

    def means(rows, folder, spec=spec):
        manifest = extract_shard(rows, tmp_path / "tiles", spec, tmp_path / folder, quiet())
        return [hdf5.read(tmp_path / folder / f"{name}.h5", "features")[0][:, :3] for name in manifest.slide_id]

    plain = means(slides, "plain", EncoderSpec(name="colour"))
    together, alone = means(slides, "together"), means(slides[1:], "alone")
    assert np.array_equal(together[1], alone[0])
    assert np.abs(together[0].astype(float) - plain[0].astype(float)).max() > 0.02
    assert hdf5.attributes(tmp_path / "together" / "a.h5")["spec"]["stain"] == method


def test_a_slide_without_stain_is_a_row_even_where_no_other_is_left(tmp_path):
    slides = make_shard(tmp_path, {"a": 2})
    flat = np.full((256, 128, 3), 230, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", flat, tile=(128, 128), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
    )
    write_tiles(tmp_path / "tiles", "a", tmp_path / "a.tif")
    slides["fingerprint"] = ""
    for method in PUBLISHED:
        spec = EncoderSpec(name="colour", stain=method)
        manifest = extract_shard(slides, tmp_path / "tiles", spec, tmp_path / "features", quiet())
        assert list(manifest.state) == ["no_stain"]
        assert "leave `stain` out" in manifest.reason[0]
