"""A shard of one site's slides -> a features file each, and the manifest that says how every slide fared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.encoders.entry import Encoder
from mil.errors import CorruptFile, MilError, SlideError
from mil.features.device import describe
from mil.features.engine import EncoderEngine
from mil.features.pipeline import Pipeline
from mil.features.plan import Work
from mil.features.profile import Profile
from mil.features.stain import estimate
from mil.features.tiling import Tiling
from mil.features.writing import FeatureWriter
from mil.files import check_id, file_name
from mil.machine import cores
from mil.progress import Reporter, Steps
from mil.provenance import up_to_date
from mil.schemas import MANIFEST
from mil.slides.fingerprint import require_same, state_on_disk
from mil.version import __version__

LIBRARIES = ("torch", "timm", "numpy", "h5py", "openslide-python", "openslide-bin", "opencv-python-headless")


@dataclass
class Shard:
    """The rows of the manifest as they become known, and the slides that are still to do."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)

    def settle(self, slide_id: str, state: str, reason: str = "", num_tiles: int = 0, checksum: str = "") -> None:
        """Write down how a slide fared."""
        self.rows[slide_id] = dict(zip(MANIFEST, (slide_id, state, reason, num_tiles, checksum), strict=True))


def extract_shard(
    slides: pd.DataFrame,
    tiles_folder: str | Path,
    encoder: EncoderSpec,
    folder: str | Path,
    reporter: Reporter,
    threads: int | None = None,
    device: str | None = None,
    profile: bool = False,
) -> pd.DataFrame:
    """Write `folder/{slide_id}.h5` for every usable slide and return the shard's manifest, one row a slide in their order.

    A slide whose file is up to date (same recipe, checksum holds) is left alone. One that fails is a row with a state
    and a reason and leaves no file. `slides`: rows of the slides table (slide_id, path, state, reason, fingerprint).
    `threads`: cores to use, by default those that this job was given. `profile`: say where the time went on standard
    error too, not only in the log.
    """
    folder = Path(folder)
    built = build(encoder)
    shard = sorted_out(slides, Path(tiles_folder), encoder, built, folder)
    with reporter.steps(f"extract {built.name}", len(shard.rows) + len(shard.works), "slides") as steps:
        for row in shard.rows.values():
            steps.done()
            if row["state"] != "ok":
                reporter.note(f"slide {row['slide_id']}: {row['state']}: {row['reason']}")
        if shard.works:
            total = sum(len(work.tiling.coords) for work in shard.works)
            engine = EncoderEngine(built, encoder, torch.device(device) if device else None, total, reporter, threads)
            extract(shard, engine, folder, _readers_for(engine, cores(threads)), reporter, steps, profile)
    return pd.DataFrame([shard.rows[str(name)] for name in slides["slide_id"]], columns=list(MANIFEST))


def sorted_out(slides: pd.DataFrame, tiles_folder: Path, spec: EncoderSpec, encoder: Encoder, folder: Path) -> Shard:
    """Which slides cannot be extracted, which need not be, and which are to do."""
    shard = Shard()
    for slide in slides.to_dict("records"):
        slide_id = check_id("slide_id", str(slide["slide_id"]), "extract")
        if slide_id in shard.rows or any(work.slide_id == slide_id for work in shard.works):
            raise MilError(f"slide_id '{slide_id}' stands twice in the slides table; ids name files, make them unique")
        state = str(slide.get("state", "ok"))
        if state != "ok":
            shard.settle(slide_id, state, str(slide.get("reason", "")))
            continue
        try:
            tiling = Tiling.read(tiles_folder / f"{file_name(slide_id)}.h5", slide_id)
        except CorruptFile as error:
            shard.settle(slide_id, "no_tiles", str(error))
            continue
        problem = _problem(slide, tiling)
        recipe = tiling.recipe(spec, encoder.weights_sha256, encoder.version)
        path = folder / f"{file_name(slide_id)}.h5"
        if problem is not None:
            shard.settle(slide_id, *problem)
        elif (checksum := up_to_date(path, recipe)) is not None:
            num_tiles = int(hdf5.attributes(path)["num_tiles"])
            shard.settle(slide_id, "ok", left_out(num_tiles, tiling), num_tiles, checksum)
        else:
            if path.is_file():  # of other settings, or broken
                path.unlink()
            before = _on_disk(Path(slide["path"]))
            problem = _replaced(Path(slide["path"]), tiling)
            if problem is not None:
                shard.settle(slide_id, *problem)
            else:
                shard.works.append(Work(slide_id, str(slide["path"]), tiling, recipe, before))
    return shard


def _problem(slide: Mapping[str, Any], tiling: Tiling) -> tuple[str, str] | None:
    """State and reason of a slide whose tiles cannot be used; None where they can."""
    if not len(tiling.coords):
        return "no_tissue", "the slide has no tiles; see its thumbnail"
    known = slide.get("fingerprint")
    if isinstance(known, str) and known and known != tiling.attributes["fingerprint"]:
        return "stale_tiles", "the tiles are of another file that had this slide's name; run `mil tile` again"
    return None


def _replaced(path: Path, tiling: Tiling) -> tuple[str, str] | None:
    """State and reason of a slide whose file is another than the one that was tiled."""
    try:
        require_same(path, str(tiling.attributes["fingerprint"]))
    except SlideError as error:
        return error.state, str(error)
    except OSError:  # gone: who opens it says so
        return None
    return None


def _on_disk(path: Path) -> str:
    """`state_on_disk`; blank where there is nothing."""
    try:
        return state_on_disk(path)
    except (OSError, SlideError):
        return ""


def _changed(work: Work) -> tuple[str, str] | None:
    """State and reason of a slide that became another file while its tiles were read."""
    path = Path(work.path)
    return None if _on_disk(path) == work.on_disk else _replaced(path, work.tiling)


def extract(
    shard: Shard, engine: EncoderEngine, folder: Path, readers: int, reporter: Reporter, steps: Steps, tell: bool
) -> Profile:
    """Run the pipeline over the slides to do, one pass a tile size (a shard has one, unless its tiles' settings changed).

    The rows of `shard` are settled as slides finish or fail. Returns where the time went, compiling included.
    """
    name = engine.encoder.name
    profile = Profile(describe(engine.device).split(" (")[0], readers)
    size_px = shard.works[0].tiling.size_px
    profile.add("compiling", engine.prepare(size_px))
    way = f"{engine.precision}{', compiled' if engine.compiled else ''}"
    reporter.say(f"encoder {name} on {describe(engine.device)}, {way}; {readers} reader{'s' if readers > 1 else ''}")

    def finished(work: Work, checksum: str, num_tiles: int) -> None:
        shard.settle(work.slide_id, "ok", left_out(num_tiles, work.tiling), num_tiles, checksum)
        steps.done(tiles=num_tiles)

    by_size = sorted(shard.works, key=lambda work: work.tiling.size_px)
    for size_px, works in groupby(by_size, key=lambda work: work.tiling.size_px):
        group = _with_stains(list(works), engine)
        if not group:
            continue
        profile.add("compiling", engine.prepare(size_px))  # known by now, unless the size changes
        writer = FeatureWriter(
            lambda work: folder / f"{file_name(work.slide_id)}.h5",
            lambda work: provenance(work, engine),
            _changed,
            finished,
        )
        try:
            Pipeline(group, engine, readers, size_px, writer, profile).run(profile.count)
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        profile.add("writing", writer.seconds)
    for work in shard.works:
        if work.error is not None:
            shard.settle(work.slide_id, *work.error)
            steps.done()
            reporter.say(f"slide {work.slide_id}: {work.error[0]}: {work.error[1]}")
    profile.stop()
    for line in profile.lines():
        (reporter.say if tell else reporter.note)(line)
    return profile


def _with_stains(works: list[Work], engine: EncoderEngine) -> list[Work]:
    """The slides with what stain normalisation needs to know of each; those where it cannot be found fail."""
    if engine.spec.stain is None:
        return works
    for work in works:
        try:
            work.stain = estimate(engine.spec.stain, work)
        except SlideError as error:
            work.error = error.state, str(error)
    return [work for work in works if work.error is None]


def _readers_for(engine: EncoderEngine, given: int) -> int:
    """One reader a core; one core is left to the process that feeds a GPU."""
    return max(given - 1, 1) if engine.device.type == "cuda" else given


def left_out(num_tiles: int, tiling: Tiling) -> str:
    """The remark on a slide of whose tiles only `num_tiles` have features; empty where all have."""
    missing = len(tiling.coords) - num_tiles
    return f"{missing} of {len(tiling.coords)} tiles cannot be decoded and were left out" if missing else ""


def provenance(work: Work, engine: EncoderEngine) -> dict[str, Any]:
    """The root attributes of a features file."""
    about = work.tiling.attributes
    return {
        "stage": "features",
        "slide_id": work.slide_id,
        "spec": engine.spec.to_json(),
        "mpp": about["mpp"],
        "mpp_source": about["mpp_source"],
        "fingerprint": about["fingerprint"],
        "size_px": work.tiling.size_px,
        "tile_mpp": work.tiling.mpp,
        **work.tiling.reading,
        "tiles_recipe": about["recipe"],
        "encoder": engine.encoder.name,
        "weights_sha256": engine.encoder.weights_sha256,
        "precision": engine.precision,
        "device": engine.device.type,
        "mil_version": __version__,
        "versions": {name: _version(name) for name in LIBRARIES},
        "recipe": work.recipe,
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
