"""Where the model looked: slides of one site in H&E, with their truth where there is one, and with their attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from mil.config import FiguresSpec
from mil.errors import SlideError
from mil.figures.arms import input_name
from mil.figures.layout import fitted
from mil.figures.registry import Drawn, figure
from mil.figures.style import CLASS_COLOURS, DOUBLE_MM, INK, SOFT, bare_image, new_figure, strategy_name
from mil.results.results import Absent, Results
from mil.slides.slide import NEAREST_LEVEL, open_slide
from mil.statistics.arms import OWN_SITE, patient_scores

CMAP = "inferno"
MARGIN = 0.04
MAX_PX = 700  # longer side of a slide's picture
TRUTH_COLOUR = "#00a087"
BAR_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True)
class ShownSlide:
    """One slide as drawn: pixels (h, w, 3) cropped to its tiles, tiles (n, 4) as x, y, wide, high in those pixels."""

    slide_id: str
    patient_id: str
    label: int | None
    """None where it is not known."""
    score: float
    pixels: np.ndarray
    um_px: float
    tiles: np.ndarray
    attention: np.ndarray
    """Relative to the mean of the patient's tiles."""
    truth: np.ndarray | None
    coords: np.ndarray


@figure(
    "Attention over the slides",
    needs=("attention", "predictions", "bags", "thumbnails", "localisation"),
    per_site=True,
    chapter="attention",
    number="F4a",
)
def draw(results: Results, spec: FiguresSpec, site: str) -> Drawn:
    """A row a slide: H&E, truth (tiles framed), attention relative to the mean of the patient's tiles."""
    slides = [show(results, site, *choice) for choice in choose(results, site, spec.slides_a_site)]
    aurocs = _tile_aurocs(results)
    with_truth = any(slide.truth is not None for slide in slides)
    columns = 3 if with_truth else 2
    wide = (DOUBLE_MM - 16) / columns
    heights = [wide * min(max(s.pixels.shape[0] / s.pixels.shape[1], 0.25), 1.0) for s in slides]
    picture = new_figure(DOUBLE_MM if with_truth else DOUBLE_MM * 0.75, sum(heights) + 10.5 * len(slides) + 6)
    panels = picture.subplots(len(slides), columns, squeeze=False, height_ratios=heights)
    values = []
    norm, reach = scale_of(slides)
    for row, slide in zip(panels, slides, strict=True):
        _draw_row(row, slide, with_truth, norm, wide - 3, aurocs.get(slide.slide_id, ""))
        values.append(_values(slide, site))
    bar = picture.colorbar(
        ScalarMappable(norm, CMAP),
        ax=panels,
        location="right",
        panchor=False,
        fraction=0.02,
        pad=0.015,
        aspect=40,
        extend="both",
    )
    step = 1.0 if reach >= 1 else 0.5
    ticks = 2.0 ** np.arange(-6, 6 + step, step)
    ticks = ticks[(ticks >= 2**-reach) & (ticks <= 2**reach)]
    bar.set_ticks(ticks.tolist(), labels=[f"{tick:.2g}×" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.set_label("Attention, times the mean of the patient's tiles", fontsize=6.5)
    bar.outline.set_visible(False)  # type: ignore[operator]
    experiment = results.experiments[results.main]
    truth = " Middle: tiles that are positive in the truth, framed." if with_truth else ""
    rule = (
        "the positive patient with the highest score, the negative one with the lowest, then the positive one with the lowest and the "
        "negative one with the highest, and on."
    )
    if slides[0].label is None:
        rule = "no patient of the site has a label, so the patient with the highest score, the one with the lowest, and on."
    return Drawn(
        figure=picture,
        data=pd.concat(values, ignore_index=True),
        n=f"{len(slides)} slides of {len({slide.patient_id for slide in slides})} patients of site {site}",
        caption=(
            f"Attention of {strategy_name(experiment.strategy.name)}, {input_name(experiment)}, by models that did not train on these "
            f"patients.{truth} Chosen by score, not by looks: {rule}"
        ),
    )


def scale_of(slides: Sequence[ShownSlide]) -> tuple[LogNorm, float]:
    """One colour scale for attention on these slides, even about the mean: from 1/64 to 64 times it at most."""
    reach = max(float(np.quantile(np.abs(np.log2(slide.attention)), 0.99)) for slide in slides)
    reach = min(max(reach, 0.5), 6.0)
    return LogNorm(2**-reach, 2**reach), reach


def choose(results: Results, site: str, count: int) -> list[tuple[str, str, int | None, float]]:
    """(slide, patient, label, score) by score: best true positive, best true negative, worst miss, worst alarm, and on.

    Of a site where no patient has a label: highest score, lowest score, and on.
    """
    bags = results.bags(results.endpoint)
    labels = {str(row.patient_id): int(row.label) for row in bags.itertuples()}
    if not (bags["site"] == site).any():
        bags = results.without_label(results.endpoint)
    bags = bags[bags["site"] == site].set_index("patient_id")
    scores = mean_scores(results, results.main)
    scores = scores[scores.index.isin(bags.index)]
    known = pd.Series([labels.get(patient) for patient in scores.index], scores.index, dtype=float)
    parts = known == 1, known == 0, known.isna()
    positive, negative, others = (scores[part].sort_values() for part in parts)
    queues = [list(positive.index[::-1]), list(negative.index), list(positive.index), list(negative.index[::-1])]
    queues += [list(others.index[::-1]), list(others.index)]
    chosen: list[tuple[str, str, int | None, float]] = []
    taken: set[str] = set()
    while any(queues) and len(chosen) < count:
        for queue in queues:
            while queue and (queue[0] in taken or _first_slide(results, site, bags, queue[0]) is None):
                queue.pop(0)
            if queue and len(chosen) < count:
                patient = queue.pop(0)
                taken.add(patient)
                slide = str(_first_slide(results, site, bags, patient))
                chosen.append((slide, patient, labels.get(patient), float(scores[patient])))
    if not chosen:
        raise Absent(f"{results.main} has no attention at site {site}")
    return chosen


def mean_scores(results: Results, experiment: str) -> pd.Series:
    """Score by patient, also of those without a label: the mean over the experiment's models that did not train on the patient."""
    scores = patient_scores(results.predictions(experiment))
    scores = scores[(scores["split"] != "transfer") & (scores["trained_on"] != OWN_SITE)]
    known = scores.groupby("patient_id")["score"].mean()
    others = results.scores_without_label(experiment)
    if others.empty:
        return known
    return pd.concat([known, others.set_index("patient_id")[results.kind_of(experiment).quantity]])


def _first_slide(results: Results, site: str, bags: pd.DataFrame, patient: str) -> str | None:
    """The patient's slide with attention and most of it."""
    read = results.files.bag_attention(site, results.main, bags.loc[patient, "slides"])
    total = {slide: float(attention.sum()) for slide, _, attention in read}
    return max(total, key=lambda slide: total[slide], default=None)


def show(results: Results, site: str, slide_id: str, patient_id: str, label: int | None, score: float) -> ShownSlide:
    """One slide, cut to its tiles, with tile squares in its pixels; read from the slide, or from its thumbnail if that is gone."""
    coords, attention = results.files.attention(site, results.main, slide_id)
    bag = results.bag_tiles(site, results.main, patient_id)
    attention = np.maximum(attention.astype(float) * bag, 1e-6)
    geometry = results.files.geometry(site, slide_id)
    mpp = float(geometry["mpp"])
    side = results.config.tiles.size_px * results.config.tiles.mpp / mpp  # level-0 pixels
    bounds = _bounds(coords, side, geometry)
    pixels, scale = _pixels(results, site, slide_id, bounds, geometry)
    try:
        share = results.files.tile_truth(site, slide_id, coords)
        truth = None if share is None else share >= results.files.truth.spec.positive_share
    except Absent:
        truth = None
    tiles = np.column_stack([(coords - bounds[:2]) * scale, np.full((len(coords), 2), side * scale)])
    return ShownSlide(slide_id, patient_id, label, score, pixels, mpp / scale, tiles, attention, truth, coords)


def _bounds(coords: np.ndarray, side: float, geometry: dict[str, Any]) -> np.ndarray:
    """Left, top, right, bottom of the tiles with a margin, in level-0 pixels within the slide."""
    low, high = coords.min(axis=0), coords.max(axis=0) + side
    margin = MARGIN * float(max(high - low))
    size = np.array([geometry["width"], geometry["height"]], dtype=float)
    return np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin, size)])


def _pixels(
    results: Results, site: str, slide_id: str, bounds: np.ndarray, geometry: dict[str, Any]
) -> tuple[np.ndarray, float]:
    """The slide within `bounds`, at most `MAX_PX` a side, and its pixels a level-0 pixel."""
    wide, high = bounds[2:] - bounds[:2]
    scale = min(1.0, MAX_PX / max(wide, high))
    mpp = float(geometry["mpp"])
    try:
        with open_slide(results.files.slide_path(site, slide_id), mpp) as slide:
            size = max(round(wide * scale), 1), max(round(high * scale), 1)
            return slide.read_area(bounds[0], bounds[1], size, mpp / scale, NEAREST_LEVEL), scale
    except (Absent, SlideError):
        thumbnail = results.files.thumbnail(site, slide_id)
        scale = thumbnail.shape[1] / float(geometry["width"])
        left, top, right, bottom = np.rint(bounds * scale).astype(int)
        return thumbnail[top:bottom, left:right], scale


def _tile_aurocs(results: Results) -> dict[str, str]:
    """Tile AUROC by slide, in words; nothing for a cohort without truth."""
    try:
        table = results.slide_aurocs(results.main)
    except Absent:
        return {}
    return {str(row.slide_id): f"tile AUROC {row.auroc:.2f}" for row in table.itertuples()}


def _draw_row(
    row: np.ndarray, slide: ShownSlide, with_truth: bool, norm: LogNorm, room_mm: float, measured: str
) -> None:
    """Headings stand over the middle of their column, since a picture may be narrower than its heading."""
    for axes in row:
        bare_image(axes, slide.pixels)
        axes.set_anchor("N")
    _scale_bar(row[0], slide)
    said = "no label" if slide.label is None else "positive" if slide.label else "negative"
    colour = SOFT if slide.label is None else CLASS_COLOURS[slide.label]
    name, size = fitted(slide.slide_id, room_mm, 7, bold=True)
    _heading(row[0], name, size, f"{said}, score {slide.score:.2f}", colour, bold=True)
    if with_truth and slide.truth is not None:
        squares = [Rectangle((x, y), w, h) for x, y, w, h in slide.tiles[slide.truth]]
        row[1].add_collection(
            PatchCollection(squares, facecolor=(*to_rgb(TRUTH_COLOUR), 0.18), edgecolor=TRUTH_COLOUR, linewidth=0.4)
        )
        _heading(row[1], "Truth", 7, f"{int(slide.truth.sum()):,} of {len(slide.truth):,} tiles positive")
    draw_attention(row[-1], slide, norm)
    _heading(row[-1], "Attention", 7, measured)


def _heading(axes: Axes, head: str, size: float, words: str, colour: str = SOFT, bold: bool = False) -> None:
    axes.set_title(head, fontsize=size, fontweight=700 if bold else 400, loc="center", pad=11 if words else 4)
    axes.annotate(
        words, (0.5, 1), xytext=(0, 3.5), textcoords="offset points", xycoords="axes fraction", ha="center",
        fontsize=6.3, color=colour,
    )  # fmt: skip


def draw_attention(axes: Axes, slide: ShownSlide, norm: LogNorm) -> None:
    """Squares coloured by attention over the greyed slide, which `axes` already shows."""
    grey = slide.pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    axes.images[0].set_data((255 - (255 - grey) * 0.35).astype(np.uint8))
    squares = [Rectangle((x, y), w, h) for x, y, w, h in slide.tiles]
    axes.add_collection(
        PatchCollection(
            squares, facecolor=mpl.colormaps[CMAP](norm(slide.attention)), edgecolor="none", antialiased=False
        )
    )


def _scale_bar(axes: Axes, slide: ShownSlide) -> None:
    """A round number of microns, at most a third of the picture, below its right corner; its length stands to its left."""
    width = slide.pixels.shape[1]
    um = max((um for um in BAR_UM if um / slide.um_px <= width / 3), default=BAR_UM[0])
    end, length = width - 0.5, um / slide.um_px
    below = axes.get_xaxis_transform() + ScaledTranslation(0, -3.5 / 72, axes.figure.dpi_scale_trans)  # type: ignore[union-attr]
    axes.plot(
        [end - length, end], [0, 0], color=INK, linewidth=1.4, solid_capstyle="butt", transform=below, clip_on=False
    )
    said = f"{um} µm" if um < 1000 else f"{um // 1000} mm"
    axes.annotate(
        said, (end - length, 0), xytext=(-2.5, 0), textcoords="offset points", xycoords=below, ha="right", va="center", fontsize=6,
    )  # fmt: skip


def _values(slide: ShownSlide, site: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "site": site,
            "slide_id": slide.slide_id,
            "patient_id": slide.patient_id,
            "label": slide.label,
            "score": slide.score,
            "x": slide.coords[:, 0],
            "y": slide.coords[:, 1],
            "attention": slide.attention,
            "truth": "" if slide.truth is None else slide.truth.astype(int),
        }
    )
