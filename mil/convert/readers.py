"""The layouts that are read: TRIDENT, CLAM, STAMP, marugoto, HistoSSLscaling, slide2vec, AtlasPatch."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mil import hdf5
from mil.convert.foreign import (
    READERS,
    Foreign,
    ForeignFeatures,
    LayoutReader,
    by_suffix,
    checked_coords,
    checked_features,
    number,
    text,
    whole,
)
from mil.errors import CorruptFile, MilError

STAMP_SIDE_PX = 224  # of tiles of marugoto and of STAMP, where a file states no other
DEEPZOOM_TILE_PX, DEEPZOOM_TILE_MPP = 224, 0.5  # all tiles of HistoSSLscaling, which stores their DeepZoom addresses


def _trident(path: Path, source: ForeignFeatures) -> Foreign:
    """TRIDENT's `features_{encoder}/{slide}.h5`: features, coords in level-0 pixels with the tiling as their attributes."""
    arrays, attributes = hdf5.read_foreign(path, "features", "coords")
    features = _needed(arrays, "features", path)
    about = attributes.get("coords", {})
    named = text(attributes["features"], "encoder") or path.parent.name.partition("features_")[2] or source.encoder
    return Foreign(
        features=features,
        coords=_coords(arrays, features, path),
        encoder=_encoder(named, path),
        size_px=whole(about, "patch_size", path),
        tile_mpp=source.tile_mpp,
        mpp=source.mpp,
        side_level0=number(about, "patch_size_level0", path),
    )


def _clam(path: Path, source: ForeignFeatures) -> Foreign:
    """CLAM's `h5_files/{slide}.h5` or `pt_files/{slide}.pt`; the tiles' side from `patches/{slide}.h5` where that is beside."""
    if path.suffix == ".pt":
        arrays: dict[str, np.ndarray] = {"features": _tensor(path)}
    else:
        arrays, _ = hdf5.read_foreign(path, "features", "coords")
    features = _needed(arrays, "features", path)
    size, side = None, None
    patches = next(
        (folder / "patches" / f"{path.stem}.h5" for folder in path.parents[:3] if (folder / "patches").is_dir()), None
    )
    if patches is not None and patches.is_file():
        tiling = clam_tiling(patches)
        if len(tiling[0]) == len(features):  # else the slide was tiled again after its features were made
            arrays.setdefault("coords", tiling[0])
            size, side = tiling[1:]
    return Foreign(
        features=features,
        coords=_coords(arrays, features, path),
        encoder=_encoder(source.encoder, path),
        size_px=size,
        tile_mpp=source.tile_mpp,
        mpp=source.mpp,
        side_level0=side,
    )


def clam_tiling(path: Path) -> tuple[np.ndarray, int, float]:
    """CLAM's `patches/{slide}.h5`: coordinates in level-0 pixels, a tile's side in pixels of its level, and in level-0 pixels."""
    arrays, attributes = hdf5.read_foreign(path, "coords")
    about = attributes.get("coords", {})
    size = whole(about, "patch_size", path)
    if "coords" not in arrays or size is None:
        raise CorruptFile(f"{path}: is no coordinates file of CLAM (dataset coords with attribute patch_size)")
    downsample = np.atleast_1d(about.get("downsample", 1.0))[:1]  # of the level, along x and y
    factors = (number(about, "custom_downsample", path), number({"downsample": downsample}, "downsample", path))
    coords = np.atleast_1d(arrays["coords"])
    return checked_coords(coords, len(coords), path), size, (factors[0] or 1.0) * (factors[1] or 1.0) * size


def _stamp(path: Path, source: ForeignFeatures) -> Foreign:
    """STAMP's and marugoto's `{slide}.h5`: feats, coords in microns (`unit`), or in tile pixels where no unit is given.

    Rows that early STAMP marked as augmented are left out. Without the slides' mpp no corner in level-0 pixels is known.
    """
    arrays, attributes = hdf5.read_foreign(path, "feats", "patch_embeddings", "coords", "augmented")
    features = _needed(arrays, "feats" if "feats" in arrays else "patch_embeddings", path)
    coords, about = arrays.get("coords"), attributes[""]
    if (kind := text(about, "feat_type") or "tile") != "tile":
        raise CorruptFile(
            f"{path}: holds features of a whole {kind}, not of its tiles; give the folder of `stamp preprocess`"
        )
    if "augmented" in arrays:
        if arrays["augmented"].shape != (len(features),):
            raise CorruptFile(f"{path}: augmented is {arrays['augmented'].shape} for {len(features)} tiles")
        kept = ~arrays["augmented"].astype(bool)
        features, coords = features[kept], None if coords is None else coords[kept]
    side_um = number(about, "tile_size_um", path) or number(about, "tile_size", path)
    side_px = whole(about, "tile_size_px", path) or STAMP_SIDE_PX
    if source.tile_mpp is None and side_um is None:
        raise MilError(
            f"{path}: does not state the size of its tiles (tile_size_um); give their microns a pixel with `tile_mpp`, "
            f"for tiles of 256 microns in {side_px} pixels {256 / side_px:.6g}"
        )
    tile_mpp = source.tile_mpp or (side_um or 0.0) / side_px
    if (unit := about.get("unit")) is not None and text(about, "unit") != "um":
        raise CorruptFile(f"{path}: its coordinates are in {str(unit)[:40]!r}, not in microns ('um')")
    named = _encoder(text(about, "extractor") or text(about, "encoder") or source.encoder, path)
    if coords is not None:
        coords = checked_coords(_scaled(coords, (1 if unit else tile_mpp) / (source.mpp or 1)), len(features), path)
    return _placed(Foreign(features, coords, named, side_px, tile_mpp, source.mpp))


def _placed(foreign: Foreign) -> Foreign:
    """With the tiles' side in level-0 pixels; without corners where the slide's mpp is not known."""
    if foreign.mpp is None:
        return replace(foreign, coords=None)
    return replace(foreign, side_level0=(foreign.size_px or 0) * (foreign.tile_mpp or 0.0) / foreign.mpp)


def _histossl(path: Path, source: ForeignFeatures) -> Foreign:
    """HistoSSLscaling's `{slide}.{ext}/features.npy`: DeepZoom level, x and y of the tile, then the features."""
    table = _npy(path)
    if table.ndim != 2 or table.shape[1] <= 3:
        raise CorruptFile(f"{path}: is {table.shape}, not (tiles, 3 + width)")
    tile_mpp = source.tile_mpp or DEEPZOOM_TILE_MPP
    side = DEEPZOOM_TILE_PX * tile_mpp / (source.mpp or 1)
    features, addresses = checked_features(table[:, 3:], path), table[:, :3]
    if (addresses[1:, 0] != addresses[:-1, 0]).any() or (addresses < 0).any() or (addresses % 1 != 0).any():
        raise CorruptFile(f"{path}: its first three columns are not the DeepZoom addresses of one level: level, x, y")
    coords = checked_coords(_scaled(addresses[:, 1:], side), len(table), path)
    named = source.encoder or path.parent.parent.parent.name  # {encoder}/{data set}/{slide}/features.npy
    return _placed(Foreign(features, coords, _encoder(named, path), DEEPZOOM_TILE_PX, tile_mpp, source.mpp))


def _slide2vec(path: Path, source: ForeignFeatures) -> Foreign:
    """slide2vec's `tile_embeddings/{slide}.pt|.npz` with `.meta.json`, and `tiles/{slide}.coordinates.npz`."""
    meta_path = path.with_suffix(".meta.json")
    meta = _meta(meta_path) if meta_path.is_file() else {}
    features = _needed({"features": _tensor(path)} if path.suffix == ".pt" else _npz(path), "features", path)
    places = path.parent.parent / "tiles" / f"{path.stem}.coordinates.npz"
    coords = None
    if places.is_file():
        given = _npz(places)
        pairs = given.get("coordinates", given.get("coords"))
        if pairs is None and {"x", "y"} <= set(given):
            pairs = np.stack([given["x"], given["y"]], axis=1)
        coords = None if pairs is None else checked_coords(pairs, len(features), places)
    spacing = number(meta, "requested_spacing_um", meta_path) or source.tile_mpp
    size = whole(meta, "requested_tile_size_px", meta_path)
    side = number(meta, "tile_size_lv0", meta_path)
    named = text(meta, "encoder_name") or source.encoder
    return Foreign(features, coords, _encoder(named, path), size, spacing, source.mpp, side)


def _atlaspatch(path: Path, source: ForeignFeatures) -> Foreign:
    """AtlasPatch's `patches/{slide}.h5`: coords (x, y, width, height, level) and features/{encoder}."""
    encoders = hdf5.names_under(path, "features")
    named = source.encoder if source.encoder in encoders else (encoders[0] if len(encoders) == 1 else None)
    if named is None:
        raise MilError(f"{path}: has features of {', '.join(encoders) or 'no encoder'}; say which with `encoder`")
    arrays, attributes = hdf5.read_foreign(path, f"features/{named}", "coords")
    features = _needed(arrays, f"features/{named}", path)
    about = attributes[""]
    return Foreign(
        features=features,
        coords=_coords(arrays, features, path),
        encoder=named,
        size_px=whole(about, "patch_size", path),
        tile_mpp=source.tile_mpp,
        mpp=number(about, "mpp", path) or source.mpp,
        side_level0=number(about, "patch_size_level0", path),
    )


def _needed(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in arrays:
        raise CorruptFile(f"{path}: dataset '{name}' is missing; is it of another tool?")
    return checked_features(arrays[name], path)


def _coords(arrays: dict[str, np.ndarray], features: np.ndarray, path: Path) -> np.ndarray | None:
    return checked_coords(arrays["coords"], len(features), path) if "coords" in arrays else None


def _scaled(coords: np.ndarray, factor: float) -> np.ndarray:
    return coords.astype(np.float64) * factor if coords.dtype.kind in "iuf" else coords  # refused by `checked_coords`


def _encoder(named: str | None, path: Path) -> str:
    if not named:
        raise MilError(f"{path}: does not say which encoder made its features; give its name with `encoder`")
    return named


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(meta, dict):
        raise CorruptFile(f"{path}: holds {type(meta).__name__}, not a mapping")
    return meta


def _tensor(path: Path) -> np.ndarray:
    import torch  # takes longer than reading a site in the other layouts

    from mil.encoders.weights import read_state

    _check_zip(path)
    try:
        tensor: Any = read_state(path)
    except MilError as error:
        raise CorruptFile(f"{path}: cannot be read as a tensor ({error})") from error
    if not isinstance(tensor, torch.Tensor):
        held = f"a dict of {', '.join(map(str, tensor))[:100]}" if isinstance(tensor, dict) else type(tensor).__name__
        raise CorruptFile(f"{path}: holds {held}, not a tensor; save the tensor of features alone with torch.save")
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        raise CorruptFile(
            f"{path}: holds a tensor of {tensor.dtype} on {tensor.device}, {tensor.layout}, not plain numbers"
        )
    return tensor.detach().float().numpy()


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(
            path, mmap_mode="r", allow_pickle=False
        )  # which holds the shape in its header to the file's size
    except Exception as error:
        raise CorruptFile(f"{path}: cannot be read as an array ({error})") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    _check_zip(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        raise CorruptFile(f"{path}: cannot be read as arrays ({error})") from error


def _check_zip(path: Path) -> None:
    """`CorruptFile` for a ZIP (`.npz`, `.pt`) that unpacks to far more than it takes on disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return  # not a ZIP: whoever reads it says so
    hdf5.check_size(unpacked, path)


def _slide_folders(folder: Path) -> dict[str, Path]:
    """`{slide}.{ext}/features.npy` anywhere below."""
    return {path.parent.stem: path for path in sorted(folder.rglob("features.npy")) if path.is_file()}


for name, reader in {
    "trident": LayoutReader("TRIDENT", by_suffix("*.h5", "features_*/*.h5"), _trident),
    "clam": LayoutReader("CLAM", by_suffix("*.h5", "*.pt", "h5_files/*.h5", "pt_files/*.pt"), _clam),
    "stamp": LayoutReader("STAMP", by_suffix("*.h5", "*/*.h5"), _stamp),
    "marugoto": LayoutReader("marugoto", by_suffix("*.h5", "*/*.h5"), _stamp),
    "histossl": LayoutReader("HistoSSLscaling", _slide_folders, _histossl),
    "slide2vec": LayoutReader(
        "slide2vec", by_suffix("*.pt", "*.npz", "tile_embeddings/*.pt", "tile_embeddings/*.npz"), _slide2vec
    ),
    "atlaspatch": LayoutReader("AtlasPatch", by_suffix("*.h5", "patches/*.h5"), _atlaspatch),
}.items():
    READERS.register(name)(reader)
