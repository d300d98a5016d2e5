"""One look for every figure: journal widths in mm, embedded fonts, one colour a strategy and one a site everywhere."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mil.specs.models import HEAD_SPECS
from mil.strategies import STRATEGIES

MM_AN_INCH = 25.4
# widths of a column, one and a half, and two, as Nature's journals ask
SINGLE_MM, MIDDLE_MM, DOUBLE_MM = 89.0, 120.0, 183.0

INK, SOFT, FAINT, HAIR, PAPER = "#1c1f23", "#5b626b", "#9aa1a9", "#dfe3e7", "#ffffff"

# Okabe and Ito 2008, told apart under the common colour-vision deficiencies
ENSEMBLE_COLOUR, ENSEMBLE_NAME = "#e69f00", "Ensemble of locals"
# Tol 2021, "muted": another family than the strategies, so that a site is never taken for one
SITE_COLOURS = (
    "#332288",
    "#44aa99",
    "#882255",
    "#b8a137",
    "#88ccee",
    "#117733",
    "#cc6677",
    "#aa4499",
    "#999933",
    "#661100",
    "#6699cc",
    "#777777",
)
# eleven, so that with twelve colours no two of 132 sites look the same
SITE_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h")
CLASS_COLOURS = {1: "#b2182b", 0: "#2166ac"}
# Tol 2021, "bright", for endpoints of several classes
SEVERAL_CLASSES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
BASELINE_COLOUR = "#9aa1a9"
BASELINE_COLOURS = {"clinical": "#8c510a", "annotation": "#01665e", "fusion": "#5e3c99", "mean_features": "#4d4d4d"}
SPARE_COLOURS = ("#7b4173", "#637939", "#8c6d31", "#843c39", "#3182bd", "#31a354")

RC: dict[str, Any] = {
    "font.family": ["Inter", "DejaVu Sans"],
    "font.size": 7.0,
    "axes.titlesize": 7.5,
    "axes.titleweight": 700,
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.labelsize": 7.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.2,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.hinting": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "mil",
}


def use_style() -> Any:
    """A context in which figures take this style: `with use_style(): ...`."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted((Path(__file__).parent / "fonts").glob("*.ttf")):
        if str(path) not in known:
            font_manager.fontManager.addfont(str(path))
    return mpl.rc_context(RC)  # type: ignore[arg-type]


def new_figure(width_mm: float, height_mm: float, by_hand: bool = False) -> Figure:
    """An empty figure of that size, laid out by itself or `by_hand`; not known to pyplot, so nothing has to be closed."""
    return Figure(figsize=(width_mm / MM_AN_INCH, height_mm / MM_AN_INCH), layout=None if by_hand else "constrained")


def strategy_colour(name: str) -> str:
    """The colour of a strategy, the same in every figure; an unknown one gets a spare colour by its name."""
    if name in STRATEGIES and STRATEGIES[name].colour:
        return STRATEGIES[name].colour
    return SPARE_COLOURS[sum(map(ord, name)) % len(SPARE_COLOURS)]


def site_colour(site: str, sites: Sequence[str]) -> str:
    """The colour of a site, by its place among the sites in alphabetic order."""
    return SITE_COLOURS[sorted(sites).index(site) % len(SITE_COLOURS)]


def readable(colour: str) -> str:
    """The colour, darkened until text in it stands out from white as WCAG 2 asks (a contrast of 4.5)."""
    rgb = to_rgb(colour)
    while 1.05 / (luminance(rgb) + 0.05) < 4.5:
        rgb = tuple(0.94 * part for part in rgb)
    return to_hex(rgb)  # type: ignore[arg-type]


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(cmap: str, share: float) -> str:
    """Dark or light text on the colour at `share` (0 to 1) of a colour map, whichever reads better."""
    return INK if luminance(mpl.colormaps[cmap](share)[:3]) > 0.18 else PAPER  # both contrasts are equal there


def site_marker(site: str, sites: Sequence[str]) -> str:
    """The marker of a site, by its place among the sites in alphabetic order."""
    return SITE_MARKERS[sorted(sites).index(site) % len(SITE_MARKERS)]


ENCODER_NAMES = {"effnet": "EfficientNet", "colour": "colour statistics"}


COLUMN_NAMES = {
    "ki67": "Ki67",
    "til_percent": "TILs (%)",
    "tils": "TILs (%)",
    "t_stage": "T stage",
    "n_stage": "N stage",
    "er": "ER",
    "pr": "PR",
    "her2": "HER2",
    "time_months": "Time (months)",
}


def column_name(column: str) -> str:
    """A column of the patient table as it stands in figures."""
    words = column.replace("_", " ").strip()
    return COLUMN_NAMES.get(column.lower(), words[:1].upper() + words[1:])


def strategy_name(name: str) -> str:
    """A strategy as it stands in legends."""
    title = STRATEGIES[name].title if name in STRATEGIES else ""
    return title or name.replace("_", " ").capitalize()


def model_name(name: str) -> str:
    """A model as it stands in legends."""
    title = HEAD_SPECS[name].title if name in HEAD_SPECS else ""
    return title or name.replace("_", " ")


def encoder_name(name: str) -> str:
    """An encoder as it stands in legends: the two that ship in words, others as the config names them."""
    return ENCODER_NAMES.get(name, name)


def chance_line(axes: Axes, diagonal: bool = False, vertical: bool = False, at: float | None = 0.5) -> None:
    """A quiet line where a coin would be; none where that is not known."""
    style: dict[str, Any] = {"color": FAINT, "linewidth": 0.7, "linestyle": (0, (3, 2)), "zorder": 0}
    if diagonal:
        axes.plot([0, 1], [0, 1], **style)
    elif at is None:
        return
    elif vertical:
        axes.axvline(at, **style)
    else:
        axes.axhline(at, **style)


def light_grid(axes: Axes, axis: str = "y") -> None:
    """Hair lines behind the data along one axis."""
    axes.grid(True, axis=axis, color=HAIR, linewidth=0.5)  # type: ignore[arg-type]


def row_axis(axes: Axes) -> None:
    """The y axis of named rows: neither ticks nor a line beside the names."""
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def unframed(axes: Axes) -> None:
    """Neither ticks nor a frame around a matrix of colours."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def dots(axes: Axes, x: Any, y: Any, colour: str, alpha: float = 0.6, **look: Any) -> None:
    """Small translucent dots, one per patient, fold or tile."""
    look = {"marker": "o", "markersize": 2.6} | look
    axes.plot(x, y, linestyle="none", color=colour, alpha=alpha, markeredgewidth=0, **look)


def interval_in_row(axes: Axes, height: float, row: Any, colour: str, **look: Any) -> None:
    """The mark of `row.value` and the line from `row.low` to `row.high`, in the row at `height`."""
    axes.plot([row.low, row.high], [height, height], color=colour, linewidth=1.4)
    axes.plot(row.value, height, "o", color=colour, markersize=4.5, **look)


def centred(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Text with its middle at (x, y)."""
    axes.text(x, y, text, ha="center", va="center", **look)


def bare_image(axes: Axes, pixels: np.ndarray, frame: str = HAIR) -> None:
    """An image without ticks, in a thin frame."""
    axes.imshow(pixels, interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.set_autoscale_on(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(frame)
        spine.set_linewidth(0.6)


def letters(panels: Iterable[Axes], up: float = 6.0) -> None:
    """a, b, c, ... at the top left of each panel, `up` points above it."""
    for letter, axes in zip("abcdefghijklmnopqrstuvwxyz", panels, strict=False):
        axes.annotate(
            letter,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(-14, up),
            textcoords="offset points",
            fontsize=8.5,
            fontweight=700,
            va="bottom",
        )
