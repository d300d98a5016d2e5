"""What a file's tags and texts say of its scale -> microns a pixel, with the name of the field that says so.

Nothing is guessed from the objective's power: 20x is 0.50 microns on one scanner and 0.465 on another.
"""

import math
import re
from collections.abc import Iterator, Mapping

import tifffile

MICRONS = {
    "µm": 1.0,
    "um": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
    "Å": 1e-4,
    "pm": 1e-6,
}
INCH, CENTIMETRE = 2, 3
PLAUSIBLE = 0.05, 5.0  # microns a pixel; tags outside say dots on paper, or nothing
NUMBER = r"([0-9]+(?:[.,][0-9]+)?(?:[eE][-+]?[0-9]+)?)"
# Spellings seen in image descriptions: Aperio and its imitators, Motic, OME in other wrappings, home-made converters; AXIS is x or y.
SPELLINGS = {
    "description.MPP": r"(?<![a-z])mpp(?:[-_ ]?AXIS)?",
    "description.PhysicalSizeX": r"physicalsizeAXIS",
    "description.PixelSize": r"pixel[-_ ]?size(?:[-_ ]?(?:AXIS|microns?|um))?",
    "description.MicronsPerPixel": r"microns?[-_ ]?per[-_ ]?pixel(?:[-_ ]?AXIS)?",
}
# Aperio's of a page that is a reduced copy, with the scale of the whole: 46920x33014 [0,100 46000x32914] (256x256) -> 2875x2057
REDUCED = re.compile(r"(\d+)x\d+\b[^|;]*?->\s*(\d+)x\d+")
Scale = tuple[float | None, float | None, str]
UNKNOWN: Scale = (None, None, "")


def number(text: object) -> float | None:
    """A positive finite number from a header field, decimal comma allowed; None otherwise."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def described_scale(text: str) -> Scale:
    """Scale from the free text of an image description."""
    if is_of_larger(text):
        return UNKNOWN
    for source, spelling in SPELLINGS.items():
        x, y = (_stated(text, spelling.replace("AXIS", axis)) for axis in "xy")
        if x is not None:
            return x, x if y is None else y, source
    return UNKNOWN


def _stated(text: str, spelling: str) -> float | None:
    match = next(_matches(text, spelling), None)
    return number(match.group(1)) if match else None


def _matches(text: str, spelling: str) -> Iterator[re.Match[str]]:
    return re.finditer(rf"{spelling}\"?\s*[=:]\s*\"?{NUMBER}", text, re.IGNORECASE)


def is_of_larger(text: str) -> bool:
    """Whether a description says that its image is a reduced copy of another, whose scale it then states."""
    sizes = REDUCED.search(text)
    return sizes is not None and int(sizes[1]) > 1.5 * int(sizes[2])


def resolution_scale(x: float | None, y: float | None, unit: int | str | None) -> Scale:
    """Scale from TIFF's resolution tags: pixels in x and y for each inch (2) or centimetre (3)."""
    microns = {INCH: 25_400.0, CENTIMETRE: 10_000.0, "inch": 25_400.0, "centimeter": 10_000.0}.get(unit or 0)
    if microns is None or not x:
        return UNKNOWN
    return microns / x, microns / (y or x), "tiff.XResolution"


def tag_scale(page: tifffile.TiffPage) -> Scale:
    """Scale from a TIFF page's resolution tags."""
    x, y = (_ratio(page.tags.valueof(tag)) for tag in (282, 283))
    return resolution_scale(x, y, int(page.tags.valueof(296, INCH)))


def contradiction(taken: Scale, page: tifffile.TiffPage, described: Scale) -> tuple[str, ...]:
    """A remark for each scale, that may be a slide's, which a page's description or resolution tags say beside the `taken` one."""
    text = page.description or ""
    every = [
        (number(match.group(1)), None, source)
        for source, spelling in SPELLINGS.items()
        for match in _matches(text, spelling.replace("AXIS", "x"))
        if not text.lstrip().startswith("<")  # OME's XML states the scales of other images too
    ]
    said = [
        f"{source} says {mpp:g} microns a pixel, {taken[2]} {taken[0]:g}"
        for mpp, _, source in (described, *every, tag_scale(page))
        if differ(taken[0], mpp)
    ]
    return tuple(dict.fromkeys(said))


def differ(mpp: float | None, other_mpp: float | None) -> bool:
    """Whether two scales, both such as a slide may have, differ by more than a tenth."""
    if mpp is None or other_mpp is None or not (is_plausible(mpp) and is_plausible(other_mpp)):
        return False
    return max(mpp, other_mpp) > 1.1 * min(mpp, other_mpp)


def is_plausible(mpp: float) -> bool:
    """Whether a slide may have this scale."""
    return PLAUSIBLE[0] <= mpp <= PLAUSIBLE[1]


def property_scale(properties: Mapping[str, str]) -> Scale:
    """Scale from OpenSlide's properties where its own mpp is absent: the description first, then the resolution tags."""
    described = described_scale(properties.get("tiff.ImageDescription", "") or properties.get("openslide.comment", ""))
    if described[0] is not None:
        return described
    x, y = number(properties.get("tiff.XResolution")), number(properties.get("tiff.YResolution"))
    return resolution_scale(x, y, properties.get("tiff.ResolutionUnit"))


def page_scale(page: tifffile.TiffPage, described: bool = True) -> Scale:
    """Scale of a TIFF page that OpenSlide does not open: its description (not with `described=False`, where that describes
    several images), ImageJ's unit, the resolution tags."""
    description = page.description or "" if described else ""
    scale = described_scale(description)
    if scale[0] is not None:
        return scale
    x, y = (_ratio(page.tags.valueof(tag)) for tag in (282, 283))
    unit = re.search(r"^unit=(\S+)", description, re.MULTILINE)
    microns = MICRONS.get(unit.group(1).lower()) if unit else None
    if microns and x:
        return microns / x, microns / (y or x), "imagej.unit"
    return tag_scale(page)


def ome_scale(pixels: Mapping[str, str]) -> Scale:
    """Scale from PhysicalSizeX and Y of an OME image's `Pixels` attributes, in microns whatever their unit."""
    sizes = []
    for axis in "XY":
        size = number(pixels.get(f"PhysicalSize{axis}"))
        unit = MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(None if size is None or unit is None else size * unit)
    x, y = sizes
    return (x, y if y is not None else x, "ome.PhysicalSizeX") if x is not None else UNKNOWN


def _ratio(value: object) -> float | None:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return number(value[0] / value[1])
    return number(value) if value is not None else None
