"""A cohort whose hospitals have features of other tools and no slides, for the tests of a start from features alone."""

from pathlib import Path

import h5py
import numpy as np
import torch

from mil.encoders.table import ENCODERS

TILES, WIDTH, MPP = 24, 1024, 0.25
WEIGHTS = ENCODERS["uni"].source.sha256 or "ab" * 32  # the hash that all hospitals name
LAYOUTS = {"north": "stamp", "south": "clam", "east": "trident"}
ROLES = {"north": "train", "south": "train", "east": "external"}


def grid(tiles: int) -> np.ndarray:
    """Level-0 corners of 512 px tiles, six a row."""
    return np.stack([np.arange(tiles) % 6, np.arange(tiles) // 6], axis=1) * 512


def write_stamp(folder: Path, slide: str, features: np.ndarray) -> None:
    """STAMP's `{slide}.h5`, coordinates in microns."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{slide}.h5", "w") as file:
        file["feats"], file["coords"] = features, (grid(len(features)) * MPP).astype(np.float32)
        file.attrs.update({"stamp_version": "2.4.0", "extractor": "uni", "unit": "um", "feat_type": "tile"})
        file.attrs.update({"tile_size_um": 128.0, "tile_size_px": 256, "code_hash": "abcdef01"})


def write_clam(folder: Path, slide: str, features: np.ndarray) -> None:
    """CLAM's `pt_files/{slide}.pt` with `patches/{slide}.h5`."""
    for name in ("pt_files", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features.astype(np.float32)), folder / "pt_files" / f"{slide}.pt")
    with h5py.File(folder / "patches" / f"{slide}.h5", "w") as file:
        file["coords"] = grid(len(features))
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 0, "custom_downsample": 2, "name": slide})


def write_trident(folder: Path, slide: str, features: np.ndarray) -> None:
    """TRIDENT's `features_{encoder}/{slide}.h5`."""
    (folder / "features_uni_v1").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "features_uni_v1" / f"{slide}.h5", "w") as file:
        file["features"], file["coords"] = features.astype(np.float32), grid(len(features))
        file["features"].attrs["encoder"] = "uni_v1"
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "name": slide})


WRITE = {"stamp": write_stamp, "clam": write_clam, "trident": write_trident}


def make_features(folder: Path, patients_a_site: int = 8) -> dict:
    """Features of every hospital, sheet and patient table below `folder`; the cohort's config.

    A patient who responds has a third of their tiles moved along one direction. One slide of each hospital is missing.
    """
    random = np.random.default_rng(0)
    slides, patients = ["slide_id,patient_id,site,path"], ["patient_id,response,age"]
    for site, layout in LAYOUTS.items():
        for number in range(patients_a_site):
            patient, response = f"{site}-p{number}", number % 2
            features = random.normal(size=(TILES, WIDTH))
            features[: TILES // 3, 0] += 0.6 * response
            WRITE[layout](folder / site, f"{patient}-s1", features.astype(np.float16))
            slides.append(f"{patient}-s1,{patient},{site},")
            patients.append(f"{patient},{response},{40 + 3 * number}")
        slides.append(f"{site}-gone,{site}-p0,{site},")
    (folder / "slides.csv").write_text("\n".join(slides) + "\n")
    (folder / "patients.csv").write_text("\n".join(patients) + "\n")
    sources = {
        site: {"layout": layout, "folder": str(folder / site), "encoder": "uni", "weights_sha256": WEIGHTS, "mpp": MPP}
        for site, layout in LAYOUTS.items()
    }
    for source in sources.values():
        source["tile_mpp"] = 0.5
    del sources["east"]["mpp"]  # TRIDENT's coordinates do not need it
    return {
        "cohort": "alone",
        "slides": {
            "sheet": str(folder / "slides.csv"),
            "patients": str(folder / "patients.csv"),
            "roles": ROLES,
            "features": sources,
        },
        "encoders": {"uni": {"name": "uni"}},
        "endpoints": {"response": {"column": "response", "repeats": 1, "folds": 2, "inner_folds": 2}},
        "experiments": {
            name: {"encoder": "uni", "training": {"rounds": 6}} for name in ("attention_pooled", "attention_fedavg")
        },
        "run": ["attention_pooled", "attention_fedavg"],
        "metrics": {"bootstrap": 100},
        "figures": {"formats": ["png"], "dpi": 72},
    }
