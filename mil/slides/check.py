"""A site's rows of the sheet -> what each slide is and whether it can be used: state, reason, scale, fingerprint."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mil.config import SlidesSpec
from mil.errors import MilError, SlideError
from mil.progress import Reporter
from mil.slides.fingerprint import fingerprint, size_of
from mil.slides.slide import Slide, open_slide

COLUMNS = (
    "slide_id",
    "patient_id",
    "site",
    "path",
    "state",
    "reason",
    "format",
    "width",
    "height",
    "levels",
    "mpp",
    "mpp_source",
    "objective_power",
    "fingerprint",
    "bytes",
)


def check_slides(sheet: pd.DataFrame, spec: SlidesSpec, reporter: Reporter) -> pd.DataFrame:
    """Rows of one site's sheet (slide_id, patient_id, site, path, mpp, labelled) -> the table of `COLUMNS`, in their order.

    A slide that cannot be used is a row whose `state` is not `ok`; with `spec.on_bad_slide == 'stop'` the first ends the run.
    """
    with reporter.steps("check", len(sheet), "slides") as steps:
        rows = list(_checked(sheet, spec, steps.done))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def check_slide(path: Path, mpp: str, spec: SlidesSpec) -> dict[str, object]:
    """One slide's columns from `state` on; `mpp` is the sheet's cell, blank where the header is to be believed."""
    found: dict[str, object] = {"state": "ok", "reason": ""}
    try:
        with open_slide(path, sheet_mpp(mpp)) as slide:
            found |= _described(slide)
            found |= {"fingerprint": fingerprint(path), "bytes": size_of(path)}
            check_scale(slide, spec)
            slide.read_region(slide.width // 2, slide.height // 2, len(slide.levels) - 1, 1, 1)
    except SlideError as error:
        found |= {"state": error.state, "reason": str(error)}
    except OSError as error:
        found |= {"state": "unreadable", "reason": f"{path.name}: {error.strerror or error}"}
    return found


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


def _checked(sheet: pd.DataFrame, spec: SlidesSpec, done) -> Iterator[dict[str, object]]:
    for row in sheet.itertuples():
        found = check_slide(Path(row.path), str(row.mpp), spec)
        if found["state"] == "ok" and not row.labelled:
            found |= {"state": "no_label", "reason": f"patient {row.patient_id} has no label for any endpoint"}
        if spec.on_bad_slide == "stop" and found["state"] not in {"ok", "no_label"}:
            raise MilError(f"slide {row.slide_id}: {found['state']}: {found['reason']}")
        done()
        yield {
            "slide_id": row.slide_id,
            "patient_id": row.patient_id,
            "site": row.site,
            "path": row.path,
            **found,
        }


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
