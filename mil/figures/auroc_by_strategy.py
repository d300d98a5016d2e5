"""AUROC of every model and strategy with its interval: a row an arm, a column a site or group of sites."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arm, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import UPRIGHT_MM, capital, fitted, name_rows, text_mm
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, HAIR, INK, SOFT, chance_line, interval_in_row, new_figure, readable, row_axis
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE, TRAINING_SITES

ROW_MM, HEAD_MM, NAMES_MM = 4.6, 22.0, 40.0
COLUMNS = 8
"""Most columns in a line; narrower ones hold no scale that can be read."""


@figure("AUROC by strategy and site", needs=("metrics",), endpoints=ANY, chapter="performance", number="F3a")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A dot and its interval for every arm at every site; one block of rows for each encoder and model."""
    kind, confidence = results.kind, results.config.metrics.confidence
    metrics = primary(results.metrics())
    metrics = metrics[metrics["split"] != "transfer"]
    metrics = metrics[metrics["endpoint"] == results.endpoint].dropna(subset=["value"])
    if metrics.empty:
        raise Absent(f"no {kind.primary.title} is defined at any site")
    blocks = _blocks(results, metrics)
    columns = _columns(results, metrics)
    lines = _lines(columns)
    rows = [_rows(blocks, metrics, line) for line in lines]
    wide = max(map(len, lines))
    step = (DOUBLE_MM - NAMES_MM) / wide - 2
    upright = any(text_mm(line, 7, bold=True) > step for scope in columns for line in _title(scope).split("\n"))
    heights = [HEAD_MM + ROW_MM * len(named) + (UPRIGHT_MM - 6) * upright for named in rows]
    picture = new_figure(DOUBLE_MM, sum(heights))
    grid = picture.subplots(
        len(lines), wide, sharey="row", squeeze=False, height_ratios=[len(named) + 0.4 for named in rows]
    )
    for line, named, panels in zip(lines, rows, grid, strict=True):
        for axes in panels[len(line) :]:
            axes.axis("off")
        for axes, scope in zip(panels, line, strict=False):
            _panel(axes, results, metrics, named, scope)
            title, size = fitted(scope, UPRIGHT_MM, 7, bold=True) if upright else (_title(scope), 7)
            axes.set_title(title, fontsize=size, loc="center", rotation=90 if upright else 0)
        name_rows(panels[0], [row_arm.name if row_arm else title for title, row_arm in named], NAMES_MM)
        for label, (_, row_arm) in zip(panels[0].get_yticklabels(), named, strict=True):
            label.set_fontweight(400 if row_arm else 700)
            label.set_color(readable(row_arm.colour) if row_arm else INK)
        panels[0].set_ylim(len(named) - 0.4, -0.8)
    picture.supxlabel(f"{kind.primary.title}, {confidence:.0%} interval", fontsize=7)
    shown = metrics[metrics["site"].isin(columns)]
    return Drawn(
        title=f"{kind.primary.title} by strategy and site",
        figure=picture,
        data=shown.reset_index(drop=True),
        n=", ".join(f"{scope} {int(shown.loc[shown['site'] == scope, 'patients'].max())}" for scope in columns),
        caption=(
            f"{kind.primary.title} for {results.endpoint} {with_intervals(shown, confidence)}. Training sites: held-out patients. “Own site” is each "
            f"hospital's patients by its own model; the ensemble averages the local models' scores. In grey columns only {kind.pairs} count. The dashed line is chance."
        ),
    )


def _blocks(results: Results, metrics: pd.DataFrame) -> dict[str, list[Arm]]:
    """Arms by encoder and model, in the order of the run; single local models only where they are not an own site's."""
    blocks: dict[str, list[Arm]] = {}
    for name, experiment in results.experiments.items():
        part = metrics[metrics["experiment"] == name]
        arms = [arm(results, name, on) for on in part["trained_on"].unique()]
        blocks.setdefault(capital(input_name(experiment)), []).extend(arms)
    return {title: sorted(arms, key=lambda row_arm: row_arm.order) for title, arms in blocks.items() if arms}


def _rows(blocks: dict[str, list[Arm]], metrics: pd.DataFrame, scopes: list[str]) -> list[tuple[str, Arm | None]]:
    """Title and arm of each row: a row without an arm heads each block; arms with a value in none of `scopes` have no row."""
    shown = metrics[metrics["site"].isin(scopes)]
    valued = set(zip(shown["experiment"], shown["trained_on"], strict=True))
    kept = {
        title: [row_arm for row_arm in arms if (row_arm.experiment, row_arm.trained_on) in valued]
        for title, arms in blocks.items()
    }
    return [(title, row_arm) for title, arms in kept.items() if arms for row_arm in [None, *arms]]


def _title(scope: str) -> str:
    return capital(scope).replace(" sites", "\nsites") if scope in {TRAINING_SITES, EXTERNAL_SITES} else scope


def _columns(results: Results, metrics: pd.DataFrame) -> list[str]:
    there = set(metrics["site"])
    wanted = [*results.training_sites, *([TRAINING_SITES] if len(results.training_sites) > 1 else [])]
    wanted += results.external_sites
    if len(results.external_sites) > 1:
        wanted.append(EXTERNAL_SITES)
    return [scope for scope in wanted if scope in there]


def _lines(columns: list[str]) -> list[list[str]]:
    """Columns in lines of at most `COLUMNS`, of nearly the same length; training sites and external sites apart where both are long."""
    cut = columns.index(TRAINING_SITES) + 1 if TRAINING_SITES in columns else 0
    parts = [columns[:cut], columns[cut:]] if len(columns) > COLUMNS else [columns]
    lines = []
    for part in filter(None, parts):
        number = -(-len(part) // COLUMNS)
        size = -(-len(part) // number)
        lines += [part[start : start + size] for start in range(0, len(part), size)]
    return lines


def _panel(axes: Axes, results: Results, metrics: pd.DataFrame, rows: list[tuple[str, Arm | None]], scope: str) -> None:
    chance_line(axes, vertical=True, at=results.kind.primary.chance)
    for height, (_, row_arm) in enumerate(rows):
        if row_arm is None:
            axes.axhline(height - 0.5, color=HAIR, linewidth=0.6, zorder=0)
            continue
        part = metrics[
            (metrics["experiment"] == row_arm.experiment)
            & (metrics["trained_on"] == row_arm.trained_on)
            & (metrics["site"] == scope)
        ]
        if part.empty:
            continue
        row = part.iloc[0]
        face = "white" if row_arm.trained_on in {OWN_SITE, ENSEMBLE} else row_arm.colour
        interval_in_row(axes, height, row, row_arm.colour, markerfacecolor=face)
    group = scope in {TRAINING_SITES, EXTERNAL_SITES}
    patients = metrics.loc[metrics["site"] == scope, "patients"].max()
    axes.set_xlabel(f"n = {int(patients)}", fontsize=6.3, color=SOFT)
    chance = results.kind.primary.chance or 0.0
    axes.set_xlim(min(chance - 0.08, float(metrics["low"].min()) - 0.05), 1.06)
    axes.set_xticks([chance, (1 + chance) / 2, 1.0], [f"{chance:g}", "", "1"])
    row_axis(axes)
    axes.grid(True, axis="x", color=HAIR, linewidth=0.5)
    if group:
        axes.set_facecolor("#f6f7f8")
