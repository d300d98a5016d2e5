"""The images that a TIFF holds -> the one that is the slide.

Labels, macros and overviews are left aside and named in a remark; several scenes are refused by name, because one of them would be
dropped. Scale and objective are those of the image that is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from mil.errors import SlideError
from mil.slides.readers.codecs import CONVERT
from mil.slides.scale import UNKNOWN, Scale, number, ome_scale, page_scale

NOT_BRIGHTFIELD = "a brightfield slide has red, green and blue of 8 bits"
CONVERT_COLOURS = "if it is one, convert a copy: vips colourspace IN OUT.tif[tile,pyramid] srgb"
EXPORT = "export each as a file of its own (QuPath: File, Export images; or bfconvert -series)"
COMPANIONS = {"label", "macro", "overview", "thumbnail", "preview", "barcode"}
FILLERS = {"image", "slide", "series", "the", "of", "a", "tif", "tiff", "ome"}
SAME_SCALE = 1.5  # images whose microns a pixel differ by less are scans of one kind
MACRO_MPP = 4.0  # no scanner's objective is this coarse; cameras that photograph the whole glass are
COMPARABLE = (
    0.5  # where a scale is not known, an image of at least this share of the slide's pixels may be another scene
)


@dataclass(frozen=True)
class Image:
    """One image of a file. `pages` are its levels, finest first; `planes` names axes that a slide does not have."""

    index: int
    name: str
    pages: tuple[tifffile.TiffPage, ...]
    scale: Scale
    objective_power: float | None = None
    planes: str = ""

    @property
    def mpp(self) -> float | None:
        """Microns a pixel in x."""
        return self.scale[0]

    @property
    def pixels(self) -> int:
        """Pixels of the finest level."""
        return self.pages[0].imagewidth * self.pages[0].imagelength

    def __str__(self) -> str:
        page = self.pages[0]
        scale = "unknown scale" if self.mpp is None else f"{self.mpp:g} microns a pixel"
        name = f" {self.name!r}" if self.name else ""
        return f"image {self.index}{name} ({page.imagewidth} x {page.imagelength} pixels, {scale})"


def images_of(path: Path, tiff: tifffile.TiffFile) -> list[Image]:
    """Every image of the file, in the file's order, each with its own scale."""
    images = list(_ome_images(path, tiff)) if tiff.is_ome else []
    return images or list(_series_images(tiff))


def slide_image(path: Path, images: list[Image]) -> tuple[Image, tuple[str, ...]]:
    """The image that is the slide, and what to say of those that are not read; `SlideError` where none or several are it."""
    if not images:
        raise SlideError("unreadable", f"{path.name}: is a TIFF that lists no image; copy it again")
    unnamed = [image for image in images if not _is_companion(image, alone=len(images) == 1)]
    if not unnamed:
        raise SlideError("not_a_slide", f"{path.name}: holds only {_listed(images)}: no slide")
    candidates = [image for image in unnamed if not fault_of(image)]
    largest = max(unnamed, key=lambda image: image.pixels)
    if not candidates or largest.pixels > max(image.pixels for image in candidates):
        raise SlideError("not_a_slide", f"{path.name}: {fault_of(largest)}")
    slide = _finest(candidates)
    for image in images:
        if "thumbnail" in image.name.lower() and image.pixels > slide.pixels:  # by its place in the file, says tifffile
            raise SlideError(
                "unsupported",
                f"{path.name}: {image} is larger than {slide}: its levels are not in order; convert it: {CONVERT}",
            )
    scenes = [image for image in candidates if image is slide or _is_scene(image, slide)]
    if len(scenes) > 1:
        raise SlideError("several_scenes", f"{path.name}: holds {len(scenes)} scenes: {_listed(scenes)}; {EXPORT}")
    check_upright(path, slide.pages[0])
    others = [image for image in candidates if image is not slide]
    return slide, (f"not read: {_listed(others)}",) if others else ()


def fault_of(image: Image) -> str:
    """Why this image is not brightfield RGB of 8 bits; empty where it is."""
    page = image.pages[0]
    if image.planes:
        return f"is an image of axes {image.planes}, several planes; {NOT_BRIGHTFIELD}"
    if page.bitspersample != 8 or page.dtype != np.uint8:
        way_out = CONVERT_COLOURS if page.dtype == np.uint16 else "export it again so"
        return f"has {page.dtype or page.bitspersample} samples; {NOT_BRIGHTFIELD}; {way_out}"
    if int(page.photometric) not in {2, 6} or page.samplesperpixel < 3:
        kind = getattr(page.photometric, "name", str(page.photometric))
        return f"has {page.samplesperpixel} sample(s) of {kind} a pixel; {NOT_BRIGHTFIELD}; {CONVERT_COLOURS}"
    if page.samplesperpixel > 4 or (page.samplesperpixel == 4 and not page.extrasamples):
        return f"has {page.samplesperpixel} channels; {NOT_BRIGHTFIELD}"
    return ""


def check_upright(path: Path, page: tifffile.TiffPage) -> None:
    """`SlideError('unsupported')` where the page is turned or mirrored."""
    orientation = page.tags.valueof(274, 1)
    if orientation != 1:
        raise SlideError(
            "unsupported", f"{path.name}: its orientation tag is {orientation} (turned or mirrored); rewrite it upright"
        )


def _finest(candidates: list[Image]) -> Image:
    """The largest image of the finest scale; the largest of all where scales are not known."""
    largest = max(candidates, key=lambda image: image.pixels)
    known = [image.mpp for image in candidates if image.mpp is not None]
    if not known or largest.mpp is None:
        return largest
    fine = [image for image in candidates if image.mpp is not None and image.mpp < min(known) * SAME_SCALE]
    return max(fine, key=lambda image: image.pixels)


def _is_scene(image: Image, slide: Image) -> bool:
    """Whether leaving out `image` beside `slide` would leave out tissue."""
    if image.mpp is None or slide.mpp is None:
        return image.pixels >= COMPARABLE * slide.pixels or (slide.mpp is None and image.mpp is not None)
    if image.mpp >= MACRO_MPP:
        return slide.mpp >= MACRO_MPP
    return image.mpp < slide.mpp * SAME_SCALE or image.pixels > slide.pixels


def _is_companion(image: Image, alone: bool) -> bool:
    """Whether its name says that it is a label, a macro or an overview; of a file's only image, only where it says nothing else."""
    if is_companion(image.pages[0]):
        return True
    words = set(re.findall(r"[a-z]+", image.name.lower()))
    return bool(words & COMPANIONS) and (not alone or words <= COMPANIONS | FILLERS)


def is_companion(page: tifffile.TiffPage) -> bool:
    """Whether a page's description says that it is a label, a macro or an overview."""
    first, _, rest = (page.description or "").lower().partition("\n")
    words, aperios = set(re.findall(r"[a-z]+", first)), rest[:64].split()
    return bool(words & COMPANIONS and words <= COMPANIONS | FILLERS) or bool(aperios and aperios[0] in COMPANIONS)


def _listed(images: list[Image]) -> str:
    return ", ".join(map(str, images[:6])) + (f" and {len(images) - 6} more" if len(images) > 6 else "")


def _ome_images(path: Path, tiff: tifffile.TiffFile) -> Iterator[Image]:
    """The images that the OME-XML lists, from this file's pages; none where the XML cannot be read or lists none."""
    try:
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:
        return
    powers = {item.get("ID"): number(item.get("NominalMagnification")) for item in _all(root, "Objective")}
    uuids = {item.text: item.get("FileName", "") for item in _all(root, "UUID")}
    here = root.get("UUID") if root.get("UUID") in uuids or len(uuids) > 1 else next(iter(uuids), None)
    next_page = 0
    for index, image in enumerate(item for item in root if _tag(item) == "Image"):
        pixels = next(_all(image, "Pixels"), None)
        if pixels is None:
            continue
        data = next(_all(pixels, "TiffData"), None)
        uuid = None if data is None else next(_all(data, "UUID"), None)
        if uuid is not None and uuid.text != here and uuid.get("FileName", "") != path.name:
            raise SlideError(
                "unsupported",
                f"{path.name}: its image {index} lies in another file, {uuid.get('FileName')}; join them: bfconvert {path.name} joined.ome.tif",
            )
        number_of = int(data.get("IFD", next_page)) if data is not None else next_page
        page = tiff.pages[number_of]
        if not isinstance(page, tifffile.TiffPage):
            page = page.aspage()
        sizes = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in "CZT"}
        sizes["C"] = max(sizes["C"] // page.samplesperpixel, 1)
        planes = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        next_page = number_of + sizes["C"] * sizes["Z"] * sizes["T"]
        settings = next(_all(image, "ObjectiveSettings"), None)
        sides = page.imagewidth, page.imagelength
        is_whole = all(
            pixels.get(f"Size{axis}", str(side)) == str(side) for axis, side in zip("XY", sides, strict=True)
        )
        scale = ome_scale(pixels.attrib) if is_whole else UNKNOWN  # else the scale is that of an image of another size
        yield Image(
            index,
            image.get("Name", ""),
            _levels([page, *(page.pages or ())]),
            page_scale(page, described=False) if scale == UNKNOWN else scale,
            powers.get(settings.get("ID")) if settings is not None else next(iter(powers.values()), None),
            f"{planes}, Y {page.imagelength}, X {page.imagewidth}" if planes else "",
        )


def _series_images(tiff: tifffile.TiffFile) -> Iterator[Image]:
    """tifffile's series; pages of one size that it stacks are images of their own."""
    index = 0
    for series in tiff.series:
        axes = dict(zip(series.axes, series.shape, strict=True))
        planes = {axis: axes[axis] for axis in axes if axis not in "YXS" and axes[axis] != 1}
        if index and series.keyframe.is_reduced:
            continue
        copies = planes.pop("I", 1) if set(planes) == {"I"} else 1
        names = ", ".join(f"{axis} {length}" for axis, length in axes.items()) if planes else ""
        for copy in range(copies):
            pages = [
                level.pages[copy] if copies > 1 else level.keyframe
                for level in series.levels
                if copy < len(level.pages)
            ]
            levels = _levels([page if isinstance(page, tifffile.TiffPage) else page.aspage() for page in pages if page])
            yield Image(index, series.name, levels, page_scale(levels[0]), None, names)
            index += 1


def _levels(pages: list[tifffile.TiffPage | tifffile.TiffFrame]) -> tuple[tifffile.TiffPage, ...]:
    """The pages that get smaller, of which a page's SubIFDs may hold others."""
    levels: list[tifffile.TiffPage] = []
    for page in pages:
        if isinstance(page, tifffile.TiffPage) and (not levels or page.imagewidth < levels[-1].imagewidth):
            levels.append(page)
    return tuple(levels)


def _all(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (item for item in element.iter() if _tag(item) == tag)


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]
