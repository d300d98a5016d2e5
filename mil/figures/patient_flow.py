"""Who came in, who was left out and why, who was used: one column a site, in the manner of CONSORT."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.layout import arrow, fitted, rounded_box
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, FAINT, HAIR, INK, SOFT, centred, new_figure, readable, site_colour
from mil.results.results import Results

REASONS = {
    "no_mpp": "no pixel size",
    "implausible_mpp": "implausible pixel size",
    "anisotropic_mpp": "unequal pixel sides",
    "unreadable": "file unreadable",
    "unreadable_region": "region unreadable",
    "not_a_slide": "not a slide",
    "several_scenes": "several scenes in one file",
    "duplicate": "listed twice",
    "implausible_size": "implausible size",
    "no_label": "no label",
    "no_patient": "not in the patient table",
    "no_tissue": "no tissue",
}
LINE_MM, PAD_MM, GAP_MM, COLUMN_GAP_MM = 3.6, 2.2, 6.0, 4.0
SITES_A_ROW = 5


def reason_name(state: str) -> str:
    """A state in words."""
    return REASONS.get(state, state.replace("_", " "))


@figure(
    "Patients and slides, from the sheet to the analysis",
    needs=("flow", "bags"),
    endpoints=ANY,
    chapter="cohort",
    number="F1b",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """One column of boxes a site: in the sheet, left out (each reason with its counts), used (with the positives)."""
    flow, bags = results.flow(results.endpoint), results.bags(results.endpoint)
    sites = [site for site in results.sites if site in set(flow["site"])]
    labels = bags["label"].astype(int) if results.kind.two_classes else pd.Series(np.nan, bags.index)
    positives = labels.groupby(bags["site"]).agg(["sum", "count"]).reindex(sites, fill_value=0)
    reasons = {site: _excluded(flow, site) for site in sites}
    most = max((len(lines) for lines in reasons.values()), default=0)
    heights = [_height(2), _height(most + 1), _height(3)]
    row_mm = 11 + sum(heights) + 2 * GAP_MM
    rows = [sites[start : start + SITES_A_ROW] for start in range(0, len(sites), SITES_A_ROW)]
    picture = new_figure(DOUBLE_MM, row_mm * len(rows), by_hand=True)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, DOUBLE_MM), ylim=(0, row_mm * len(rows)))
    axes.axis("off")
    for number, members in enumerate(rows):
        top = row_mm * (len(rows) - number) - 1
        most_across = len(rows[0])
        width = (DOUBLE_MM - 2 - COLUMN_GAP_MM * (most_across - 1)) / most_across
        for column_number, site in enumerate(members):
            column = _Column(axes, 1 + column_number * (width + COLUMN_GAP_MM), width, site_colour(site, results.sites))
            column.draw(top, site, results.config.slides.roles[site], flow, reasons[site], positives.loc[site], heights)
    used = flow[flow["step"] == "used"]
    return Drawn(
        figure=picture,
        data=pd.concat([flow, _positive(positives)], ignore_index=True),
        n=f"{int(used['patients'].sum())} patients with {int(used['slides'].sum())} slides used",
        caption=(
            "Patients and slides of every site from the slide sheet to the analysis. Each excluded slide is counted "
            "under the first reason that stopped it; a patient is lost only when none of their slides is left."
            + (" Patients without a label are predicted all the same." if (flow["reason"] == "no_label").any() else "")
        ),
    )


def _positive(positives: pd.DataFrame) -> pd.DataFrame:
    """The positives of every site as rows of the flow."""
    positives = positives[positives["count"] > 0]
    return pd.DataFrame({"site": positives.index, "step": "positive", "patients": positives["sum"].astype(int)})


def _excluded(flow: pd.DataFrame, site: str) -> list[str]:
    rows = flow[(flow["site"] == site) & (flow["step"] == "excluded")]
    return [f"{row.slides} {_plural('slide', row.slides)}: {reason_name(row.reason)}" for row in rows.itertuples()]


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def _height(lines: int) -> float:
    return lines * LINE_MM + 2 * PAD_MM


class _Column:
    """One site's boxes, from the top down; all lengths in mm."""

    def __init__(self, axes: Axes, left: float, width: float, colour: str) -> None:
        self.axes, self.left, self.width, self.colour = axes, left, width, colour

    def draw(
        self,
        top: float,
        site: str,
        role: str,
        flow: pd.DataFrame,
        reasons: list[str],
        positives: pd.Series,
        heights: list[float],
    ) -> None:
        rows = flow[flow["site"] == site].set_index("step")
        before, used = rows.loc["in_sheet"], rows.loc["used"]
        lost = int(before["patients"] - used["patients"])
        middle = self.left + self.width / 2
        name, size = fitted(site, self.width, 8.5, bold=True)
        centred(self.axes, middle, top - 2.6, name, fontsize=size, fontweight=700, color=readable(self.colour))
        centred(self.axes, middle, top - 6.3, "trains" if role == "train" else "external", fontsize=6.5, color=SOFT)
        y = top - 9
        y = self._box(
            y, heights[0], [f"{before['patients']} patients", f"{before['slides']} slides in the sheet"], bold=1
        )
        self._arrow(y)
        y -= GAP_MM
        slides = int(before["slides"] - used["slides"])
        head = f"{slides} {_plural('slide', slides)}, {lost} {_plural('patient', lost)} left out"
        y = self._box(y, heights[1], [head, *reasons] if reasons else ["none left out"], quiet=True)
        self._arrow(y)
        y -= GAP_MM
        lines = [f"{used['patients']} patients used", f"{used['slides']} slides"]
        positive, total = int(positives["sum"]), int(positives["count"])
        if total:
            lines.append(f"{positive} positive ({positive / total:.0%})")
        self._box(y, heights[2], lines, bold=1, strong=True)

    def _box(
        self, top: float, height: float, lines: list[str], bold: int = 0, quiet: bool = False, strong: bool = False
    ) -> float:
        edge = HAIR if quiet else self.colour if strong else FAINT
        face, line_points = "#f6f7f8" if quiet else "white", 1.0 if strong else 0.7
        rounded_box(self.axes, (self.left, top - height), self.width, height, edge, face, line_points)
        for number, line in enumerate(lines):
            text, size = fitted(line, self.width - 2 * PAD_MM, 6.3 if quiet else 7, bold=number == 0)
            self.axes.text(
                self.left + (PAD_MM if quiet else self.width / 2),
                top - PAD_MM - (number + 0.5) * LINE_MM,
                text,
                ha="left" if quiet else "center",
                va="center",
                fontsize=size,
                fontweight=700 if number < bold or (quiet and number == 0) else 400,
                color=SOFT if quiet else INK,
            )
        return top - height

    def _arrow(self, y: float) -> None:
        middle = self.left + self.width / 2
        arrow(self.axes, (middle, y), (middle, y - GAP_MM), FAINT)
