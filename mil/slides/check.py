"""A site's rows of the sheet -> what each slide is and whether it can be used: state, reason, scale, fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.config import SlidesSpec
from mil.errors import MilError, SlideError
from mil.files import reason_of, way_out
from mil.progress import Reporter
from mil.schemas import SLIDES
from mil.slides.fingerprint import fingerprint, size_of, state_on_disk
from mil.slides.isolation import isolated
from mil.slides.scale import differ
from mil.slides.slide import Slide, open_slide
from mil.specs.features import FeaturesSpec
from mil.tables import table_of
from mil.version import __version__

SECONDS_A_SLIDE = 120.0  # to open a slide and look at 45 places of it
BYTES_A_SECOND = 2e7  # the slowest storage that is waited for; every byte is hashed
PASSING = frozenset({"unreadable", "timeout", "decoder_crash"})  # may be the disk's fault, so the slide is read again
SAMPLE_PX = 128
DARK, BRIGHT = 48, 160  # of 255
FEW_COLOURS = 16


def check_slides(sheet: pd.DataFrame, spec: SlidesSpec, reporter: Reporter, kept: Path | None = None) -> pd.DataFrame:
    """Rows of one site's sheet (slide_id, patient_id, site, path, mpp, listed) -> the table of `SLIDES`, in their order.

    A slide that cannot be used is a row whose `state` is not `ok`; with `spec.on_bad_slide == 'stop'` the first ends the run.
    `kept`: file with a line per slide, written when the slide is done; a slide that has not changed since is not read again.
    """
    with reporter.steps("check", len(sheet), "slides") as steps, _Kept(kept, spec) as known:
        rows = list(_checked(sheet, spec, steps.done, known))
    for row in mark_series_twice(rows):
        if spec.on_bad_slide == "stop":
            raise MilError(f"slide {row['slide_id']}: duplicate: {row['reason']}")
    return table_of(rows, SLIDES)


def check_slide(path: Path, mpp: str, spec: SlidesSpec) -> dict[str, object]:
    """One slide's columns from `state` on; `mpp` is the sheet's cell, blank where the header is to be believed.

    The file is opened in a process of its own: one that kills its decoder is a row like any other.
    """
    try:
        timeout_s = SECONDS_A_SLIDE + (size_of(path) / BYTES_A_SECOND if path.exists() else 0)
        return isolated(look_at, path, mpp, spec, name=path.name, timeout_s=timeout_s)
    except SlideError as error:
        return {"state": error.state, "reason": str(error)}
    except OSError as error:
        return {"state": "unreadable", "reason": f"{path.name}: {error.strerror or error}"}


def unopened(source: FeaturesSpec, mpp: str) -> dict[str, object]:
    """Columns of a slide of which there are features only: whether they are there, `mil convert` finds out."""
    given = sheet_mpp(mpp) or source.mpp
    scale = {} if given is None else {"mpp": given, "mpp_source": "sheet" if mpp.strip() else "slides.features"}
    return {"state": "ok", "reason": "", "format": f"features ({source.layout})", "fingerprint": "", **scale}


def look_at(path: Path, mpp: str, spec: SlidesSpec) -> dict[str, object]:
    """`check_slide`, in this process."""
    columns: dict[str, object] = {"state": "ok", "reason": ""}
    try:
        with open_slide(path, sheet_mpp(mpp)) as slide:
            columns |= _described(slide)
            columns |= {"fingerprint": fingerprint(path, spec.fingerprint == "full"), "bytes": size_of(path)}
            check_scale(slide, spec)
            columns["reason"] = remark(slide, *sampled(slide, spec.unreadable == "drop"))
    except SlideError as error:
        columns |= {"state": error.state, "reason": str(error)}
    except OSError as error:
        columns |= {"state": "unreadable", "reason": f"{path.name}: {error.strerror or error}"}
    return columns


def sampled(slide: Slide, drop_unreadable: bool) -> tuple[np.ndarray, int]:
    """Pixels (n, 3) of a lattice of places, corners among them, on the coarsest level and, fewer, on the finest.

    A place that cannot be decoded is `SlideError('unreadable_region')`, or is counted with `drop_unreadable`.
    """
    pixels, unreadable = [np.empty((0, 3), np.uint8)], 0
    for level, places in ((slide.alike - 1, 6), (0, 3)):
        width, height = min(slide.levels[level].width, SAMPLE_PX), min(slide.levels[level].height, SAMPLE_PX)
        span = slide.levels[level].downsample
        for y in np.linspace(0, max(slide.height - height * span, 0), places):
            for x in np.linspace(0, max(slide.width - width * span, 0), places):
                try:
                    pixels.append(slide.read_region(round(x), round(y), level, width, height).reshape(-1, 3))
                except SlideError as error:
                    if not drop_unreadable or error.state != "unreadable_region" or unreadable >= 10:
                        raise
                    unreadable += 1
    return np.concatenate(pixels), unreadable


def remark(slide: Slide, pixels: np.ndarray, unreadable: int) -> str:
    """What a person should look at in a slide that can be used; `SlideError('not_a_slide')` where it is fluorescence."""
    dark, bright = pixels.max(axis=1) < DARK, pixels.min(axis=1) > BRIGHT
    if len(pixels) and dark.mean() > 0.5 and bright.sum() <= 0.01 * (~dark).sum():
        raise SlideError(
            "not_a_slide",
            f"{slide.path.name}: its background is black ({dark.mean():.0%} of it): fluorescence, not brightfield",
        )
    _check_colours(slide, pixels[~dark])
    remarks = [*slide.reader.header.remarks]
    others = ", ".join(f"{level.width} x {level.height}" for level in slide.levels[slide.alike :])
    remarks += [f"not read: {others} pixels, another picture than the finer level's"] if others else []
    remarks += [f"{unreadable} of 45 places looked at cannot be decoded"] if unreadable else []
    gaps = slide.reader.gaps() if slide.reader.grid(0) is not None else None
    if gaps is not None:
        remarks.append(f"the file holds no pixels for {gaps.cells.sum():,} of {gaps.cells.size:,} tiles")
    if slide.objective_power and slide.mpp and not 0.6 < slide.mpp * slide.objective_power / 10 < 1.7:
        remarks.append(
            f"{slide.mpp:g} microns a pixel is unusual for an objective of {slide.objective_power:g}x (about {10 / slide.objective_power:g})"
        )
    stated = slide.reader.header
    if slide.mpp_source == "sheet" and (differ(slide.mpp, stated.mpp_x) or differ(slide.mpp, stated.mpp_y)):
        scale = f"{stated.mpp_source} {stated.mpp_x:g} in x and {stated.mpp_y:g} in y"
        remarks.append(f"the sheet says {slide.mpp:g} microns a pixel, {scale}")
    colours = len(np.unique(pixels[::3].astype(np.uint32) @ np.array([1, 256, 65_536], np.uint32)))
    if 2 < colours <= FEW_COLOURS:
        remarks.append(f"has {colours} colours only: is it a segmentation?")
    return "; ".join(remarks)


def _check_colours(slide: Slide, pixels: np.ndarray) -> None:
    """`SlideError('unsupported')` where glass has the colour that white has when RGB is taken for YCbCr, or YCbCr for RGB."""
    if len(pixels) < 1000:
        return
    has_glass = int((pixels.min(axis=1) > BRIGHT).mean() > 0.001)
    # No stain has the second colour; pale tissue of the same slides may look like glass.
    for tag, right, glass in (("RGB", 6, (245, 128, 128)), ("YCbCr", 2, (255, 121, 255)))[has_glass:]:
        like = (np.abs(pixels.astype(np.int16) - np.array(glass)) <= (40, 12, 12)).all(axis=1)
        if like.mean() > 0.2:
            raise SlideError(
                "unsupported",
                f"{slide.path.name}: its photometric tag says {tag}, but {like.mean():.0%} of its pixels have the colour that "
                f"white glass has when that is wrong; correct a copy: tiffset -s 262 {right} COPY",
            )


def sheet_mpp(cell: str) -> float | None:
    """The sheet's mpp as a number; blank is None; `SlideError('implausible_mpp')` where it is no positive number."""
    if not cell.strip():
        return None
    try:
        mpp = float(cell)
    except ValueError:
        mpp = float("nan")
    if not 0 < mpp < float("inf"):
        raise SlideError("implausible_mpp", f"the sheet's mpp {cell!r} is not a positive number of microns a pixel")
    return mpp


def check_scale(slide: Slide, spec: SlidesSpec) -> None:
    """`SlideError` where the slide's mpp is absent, implausible, or different in x and y."""
    if slide.mpp is None or slide.mpp_x is None or slide.mpp_y is None:
        raise SlideError(
            "no_mpp", f"{slide.path.name}: its header does not say the microns a pixel; fill the sheet's mpp column"
        )
    for axis, mpp in (("x", slide.mpp_x), ("y", slide.mpp_y)):
        if not spec.mpp_min <= mpp <= spec.mpp_max:
            raise SlideError(
                "implausible_mpp",
                f"{slide.path.name}: {slide.mpp_source} says {mpp:g} microns a pixel in {axis}, outside "
                f"{spec.mpp_min:g} to {spec.mpp_max:g}; fill the sheet's mpp column",
            )
    if abs(slide.mpp_x - slide.mpp_y) > spec.anisotropy_max * slide.mpp:
        raise SlideError(
            "anisotropic_mpp",
            f"{slide.path.name}: {slide.mpp_source} says {slide.mpp_x:g} microns a pixel in x and {slide.mpp_y:g} in y, "
            f"more than {spec.anisotropy_max:.0%} apart; fill the sheet's mpp column",
        )


class _Kept:
    """What is known of slides from an earlier check, by everything that decides it: path, size, time, mpp, settings and version."""

    def __init__(self, path: Path | None, spec: SlidesSpec) -> None:
        self.path, self.spec = path, f"{__version__} {spec.to_json()}"
        self.found: dict[str, dict[str, object]] = {}

    def __enter__(self) -> "_Kept":
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
            for digest, _, text in (line.partition(b" ") for line in lines):
                if (
                    hashlib.sha256(text).hexdigest().encode() == digest
                ):  # else damaged, or what a killed job was writing
                    self.found |= json.loads(text)
            self.file = open(self.path, "ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.file.close()

    def look(self, path: Path, mpp: str, spec: SlidesSpec) -> dict[str, object]:
        """`check_slide`, or what it said before."""
        if self.path is None:
            return check_slide(path, mpp, spec)
        try:
            state = state_on_disk(path)
        except (OSError, SlideError):  # gone: the check says so
            return check_slide(path, mpp, spec)
        key = hashlib.sha256("\0".join([str(path), state, mpp, self.spec]).encode()).hexdigest()
        if key not in self.found:
            columns = check_slide(path, mpp, spec)
            if columns["state"] in PASSING:
                return columns
            self.found[key] = columns
            self._keep(json.dumps({key: columns}, default=float).encode())
        return dict(self.found[key])

    def _keep(self, text: bytes) -> None:
        """Append a line with its SHA-256; a killed job may have left half a line, so that it begins with a line's end."""
        try:
            self.file.write(b"\n%s %s\n" % (hashlib.sha256(text).hexdigest().encode(), text))
        except OSError as error:
            raise MilError(f"{self.path}: cannot be written ({reason_of(error)}){way_out(error)}") from error


def _checked(sheet: pd.DataFrame, spec: SlidesSpec, done, known: _Kept) -> Iterator[dict[str, object]]:
    for row in sheet.itertuples():
        source = spec.features.get(row.site)
        columns = known.look(Path(row.path), str(row.mpp), spec) if source is None else unopened(source, str(row.mpp))
        if columns["state"] == "ok" and not row.listed:
            columns |= {"state": "no_patient", "reason": f"patient {row.patient_id} has no row in the patient table"}
        if spec.on_bad_slide == "stop" and columns["state"] not in {"ok", "no_patient"}:
            raise MilError(f"slide {row.slide_id}: {columns['state']}: {columns['reason']}")
        done()
        yield {
            "slide_id": row.slide_id,
            "patient_id": row.patient_id,
            "site": row.site,
            "path": row.path,
            **columns,
        }


def mark_series_twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that name files of one DICOM series, or its folder, are one slide: none of them can be used. Returns these rows."""
    series: dict[object, list[dict[str, Any]]] = {}
    for row in rows:
        if row["state"] == "ok" and row.get("format") == "dicom":
            series.setdefault(row["fingerprint"], []).append(row)
    marked = [row for same in series.values() if len(same) > 1 for row in same]
    for row in marked:
        others = ", ".join(str(other["slide_id"]) for other in series[row["fingerprint"]] if other is not row)
        row["reason"] = (
            f"{Path(str(row['path'])).name}: is of the same DICOM series as slide {others}; "
            "keep one row for it, whose path is the folder or any of its files"
        )
    for row in marked:
        row["state"] = "duplicate"
    return marked


def _described(slide: Slide) -> dict[str, object]:
    return {
        "format": slide.format,
        "width": slide.width,
        "height": slide.height,
        "levels": len(slide.levels),
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "objective_power": slide.objective_power,
    }
