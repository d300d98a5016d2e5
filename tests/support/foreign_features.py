"""One slide's features as each tool writes them: 30 tiles of 16 numbers."""

import json

import h5py
import numpy as np
import torch

from mil.convert.foreign import ForeignFeatures

GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(30, 16)).astype(np.float32)
COORDS = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2) * 512


def trident(folder):
    (folder / "features_uni_v1").mkdir(parents=True)
    with h5py.File(folder / "features_uni_v1" / "s1.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, chunks=(1, 16))
        file["features"].attrs.update({"name": "s1", "savetodir": "x", "encoder": "uni_v1"})
        file.create_dataset("coords", data=COORDS)
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40})
    return ForeignFeatures(folder, mpp=0.25)


def clam(folder):
    (folder / "h5_files").mkdir(parents=True)
    (folder / "patches").mkdir()
    with h5py.File(folder / "h5_files" / "s1.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, maxshape=(None, 16), chunks=(32, 16))
        file.create_dataset("coords", data=COORDS.astype(np.int32))
    with h5py.File(folder / "patches" / "s1.h5", "w") as file:
        file.create_dataset("coords", data=COORDS)
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_level": 1, "downsample": np.array([2.0, 2.0]), "name": "s1"}
        )
    return ForeignFeatures(folder, encoder="resnet50_layer3", mpp=0.25)


def clam_pt(folder):
    source = clam(folder)
    (folder / "pt_files").mkdir()
    torch.save(torch.from_numpy(FEATURES), folder / "pt_files" / "s1.pt")
    (folder / "h5_files" / "s1.h5").unlink()
    return source


def stamp(folder):
    folder.mkdir(parents=True)
    with h5py.File(folder / "s1.h5", "w") as file:
        file["feats"] = FEATURES.astype(np.float16)
        file["coords"] = (COORDS * 0.25).astype(np.float32)
        file.attrs.update({"stamp_version": "2.1.0", "extractor": "uni", "unit": "um"})
        file.attrs.update({"tile_size_um": 128.0, "tile_size_px": 256, "feat_type": "tile"})
    return ForeignFeatures(folder, mpp=0.25)


def marugoto(folder):
    folder.mkdir(parents=True)
    with h5py.File(folder / "s1.h5", "w") as file:
        file["feats"] = np.concatenate([FEATURES, FEATURES + 1])
        file["coords"] = np.concatenate([COORDS // 512 * 224] * 2)
        file["augmented"] = np.repeat([False, True], 30)
        file.attrs["extractor"] = "ctranspath"
    return ForeignFeatures(folder, mpp=0.25, tile_mpp=512 * 0.25 / 224)


def histossl(folder):
    place = folder / "phikon" / "tcga" / "s1.svs"
    place.mkdir(parents=True)
    address = np.concatenate([np.full((30, 1), 16), COORDS // 512], axis=1)
    np.save(place / "features.npy", np.concatenate([address, FEATURES], axis=1).astype(np.float32))
    return ForeignFeatures(folder, mpp=0.21875, tile_mpp=0.5)


def slide2vec(folder):
    (folder / "tile_embeddings").mkdir(parents=True)
    (folder / "tiles").mkdir()
    torch.save(torch.from_numpy(FEATURES), folder / "tile_embeddings" / "s1.pt")
    meta = {
        "encoder_name": "virchow2",
        "requested_tile_size_px": 256,
        "requested_spacing_um": 0.5,
        "tile_size_lv0": 512,
    }
    (folder / "tile_embeddings" / "s1.meta.json").write_text(json.dumps(meta))
    np.savez(folder / "tiles" / "s1.coordinates.npz", x=COORDS[:, 0], y=COORDS[:, 1])
    return ForeignFeatures(folder, mpp=0.25)


def slide2vec_npz(folder):
    source = slide2vec(folder)
    (folder / "tile_embeddings" / "s1.pt").unlink()
    np.savez(folder / "tile_embeddings" / "s1.npz", features=FEATURES)
    return source


def atlaspatch(folder):
    (folder / "patches").mkdir(parents=True)
    with h5py.File(folder / "patches" / "s1.h5", "w") as file:
        file["coords"] = np.concatenate([COORDS, np.full((30, 2), 256), np.ones((30, 1))], axis=1).astype(np.int32)
        file["passports"] = ["p"] * 30
        file["features/h0_mini"] = FEATURES
        file.attrs.update({"patch_size": 256, "patch_size_level0": 512, "mpp": 0.25})
    return ForeignFeatures(folder)


LAYOUTS = {
    "trident": (trident, "trident", "uni_v1"),
    "clam": (clam, "clam", "resnet50_layer3"),
    "clam, pt": (clam_pt, "clam", "resnet50_layer3"),
    "stamp": (stamp, "stamp", "uni"),
    "marugoto": (marugoto, "marugoto", "ctranspath"),
    "histossl": (histossl, "histossl", "phikon"),
    "slide2vec": (slide2vec, "slide2vec", "virchow2"),
    "slide2vec, npz": (slide2vec_npz, "slide2vec", "virchow2"),
    "atlaspatch": (atlaspatch, "atlaspatch", "h0_mini"),
}
