"""How the hospitals differ before any model: features, how well they tell the site, stain, pixel size, bag size, labels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mil.config import FiguresSpec
from mil.figures.how_made import with_intervals
from mil.figures.layout import UPRIGHT_MM, capital, fitted, legend_of_figure, text_mm
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import (
    DOUBLE_MM,
    SEVERAL_CLASSES,
    SOFT,
    chance_line,
    column_name,
    dots,
    letters,
    light_grid,
    new_figure,
    site_colour,
    site_marker,
    unframed,
)
from mil.results.results import Absent, Results
from mil.rng import rng
from mil.tables import by_slide

PANEL_MM = 46.0  # width of a panel
STAINS = ("haematoxylin", "eosin")
UPRIGHT_LINE_MM = 2.2
"""Width of a name that stands upright."""


@figure(
    "How the sites differ",
    needs=("bags", "census", "baselines", "comparisons"),
    endpoints=ANY,
    chapter="cohort",
    number="ED4",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Components of patients' mean features, site classifier, stain vectors, microns a pixel, tiles a patient, positives."""
    bags = results.bags(results.endpoint)
    sites = [site for site in results.sites if site in set(bags["site"])]
    picture = new_figure(DOUBLE_MM, 106 + 1.5 * len(sites))
    panels = picture.subplots(2, 3).ravel()
    data = [_components(panels[0], results), _classifier(panels[1], results, sites), _stains(panels[2], results, sites)]
    data += [*_by_patient(panels[3:5], results, bags, sites), _labels(panels[5], results, bags, sites)]
    letters(panels)
    legend_of_figure(picture, *panels[0].get_legend_handles_labels())
    classifier = results.about_features(results.endpoint, "site_classifier")
    told_apart = with_intervals(classifier, results.config.metrics.confidence)
    last = "share of each class"
    if results.kind.scaled:
        last = f"{results.endpoint} of every patient, with medians"
    elif results.kind.having:
        last = f"share of patients {results.kind.having} {results.endpoint} with Wilson's intervals"
    return Drawn(
        figure=picture,
        data=pd.concat([part for part in data if len(part)], ignore_index=True),
        n=f"{len(bags)} patients at {len(sites)} sites",
        caption=(
            f"a, first two principal components of each patient's mean features ({results.experiments[results.main].encoder}), with "
            "the share of variance. b, AUROC of a logistic regression that tells each site from the others by these features (5-fold "
            f"cross-validation, {told_apart}); 0.5 would be sites that cannot be told apart. c, haematoxylin and "
            "eosin of each site: the colours that the stains have at equal density (Macenko 2009, mean over some slides). d, microns a pixel. "
            f"e, tiles a patient. f, {last}. Sites stand in the order of the legend."
        ),
    )


def _components(axes: Axes, results: Results) -> pd.DataFrame:
    table = results.about_features(results.endpoint, "components")
    for site in (site for site in results.sites if site in set(table["site"])):
        mine = table[table["site"] == site]
        look = {"marker": site_marker(site, results.sites), "label": site}
        dots(axes, mine["pc1"], mine["pc2"], site_colour(site, results.sites), 0.75, **look)
    axes.set(
        xlabel=f"PC 1 ({table['share1'].iloc[0]:.0%})",
        ylabel=f"PC 2 ({table['share2'].iloc[0]:.0%})",
        xticks=[],
        yticks=[],
    )
    axes.set_title("Features")
    return table.assign(panel="features")


def _classifier(axes: Axes, results: Results, sites: Sequence[str]) -> pd.DataFrame:
    table = results.about_features(results.endpoint, "site_classifier")
    light_grid(axes)
    chance_line(axes)
    for row in table.itertuples():
        column, colour = list(sites).index(str(row.site)), site_colour(str(row.site), results.sites)
        axes.vlines(column, row.low, row.high, color=colour, linewidth=1.4)
        axes.plot(column, row.value, site_marker(str(row.site), results.sites), color=colour, markersize=4.5)
    _sites_below(axes, sites)
    axes.set(ylim=(min(0.3, float(table["low"].min()) - 0.02), 1.03), ylabel="AUROC, site against the rest")
    axes.set_title("Site from features")
    return table.assign(panel="site classifier")


def _stains(axes: Axes, results: Results, sites: Sequence[str]) -> pd.DataFrame:
    """A patch a site and stain, in the colour of optical density 1 along the stain's mean vector."""
    axes.set_title("Stain")
    try:
        table = results.about_features(results.endpoint, "stain")
    except Absent:
        _without(axes, "slides were not\non this machine")
        return pd.DataFrame()
    for column, site in enumerate(sites):
        for row, stain in enumerate(STAINS):
            mine = table[(table["site"] == site) & (table["stain"] == stain)][["red", "green", "blue"]]
            if len(mine):
                colour = tuple(np.clip(np.exp(-mine.mean().to_numpy()), 0, 1))
                axes.add_patch(Rectangle((column - 0.42, row - 0.4), 0.84, 0.8, facecolor=colour, edgecolor="none"))
    _sites_below(axes, sites)
    axes.set_ylim(1.5, -0.5)
    axes.set_yticks([0, 1], ["H", "E"])
    unframed(axes)
    return table.assign(panel="stain")


def _without(axes: Axes, reason: str) -> None:
    """A panel that has nothing to show."""
    axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=6.5, color=SOFT, transform=axes.transAxes)
    axes.axis("off")


def _by_patient(
    panels: Sequence[Axes], results: Results, bags: pd.DataFrame, sites: Sequence[str]
) -> list[pd.DataFrame]:
    table = by_slide(bags)[["slide_id", "patient_id", "site"]].merge(
        results.census()[["slide_id", "mpp", "num_tiles"]], on="slide_id"
    )
    by_patient = table.groupby(["site", "patient_id"])
    tables = []
    for axes, name, values in (
        (panels[0], "Microns a pixel", by_patient["mpp"].mean()),
        (panels[1], "Tiles a patient", by_patient["num_tiles"].sum()),
    ):
        axes.set_title(name)
        if values.isna().all():
            _without(axes, "not stated in\nthe features")
            continue
        light_grid(axes)
        for column, site in enumerate(sites):
            mine = values.get(site, pd.Series(dtype=float)).dropna().to_numpy(dtype=float)
            jitter = rng(0, "jitter", site, name).uniform(-0.2, 0.2, len(mine))
            dots(axes, column + jitter, mine, site_colour(site, results.sites))
        _sites_below(axes, sites)
        axes.set_ylim(0, float(values.max()) * 1.08)
        tables.append(values.rename("value").reset_index().assign(panel=name))
    return tables


def _labels(axes: Axes, results: Results, bags: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    light_grid(axes)
    if not results.kind.having:
        return (_numbers if results.kind.scaled else _classes)(axes, results, bags, sites)
    rows, table = [], results.cohort()
    shares = table[(table["variable"] == results.endpoint) & (table["level"] == "yes")].set_index("site")
    for column, site in enumerate(sites):
        share, low, high = shares.loc[site, ["value", "low", "high"]]
        colour = site_colour(site, results.sites)
        axes.bar(column, share, width=0.6, color=colour, alpha=0.35)
        axes.vlines(column, low, high, color=colour, linewidth=1.3)
        rows.append({"panel": "label", "site": site, "value": share, "low": low, "high": high})
    _sites_below(axes, sites)
    axes.set_ylim(0, 1)
    axes.set_title(f"{capital(results.kind.having)} {results.endpoint}")
    return pd.DataFrame(rows)


def _classes(axes: Axes, results: Results, bags: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """Shares of the classes, one bar a site, the spec's first class at the bottom."""
    shares = pd.crosstab(bags["site"], results.kind.named(bags), normalize="index").reindex(
        index=list(sites), columns=list(results.kind.spec.classes), fill_value=0.0
    )
    below = np.zeros(len(sites))
    for number, name in enumerate(shares.columns):
        colour = SEVERAL_CLASSES[number % len(SEVERAL_CLASSES)]
        axes.bar(range(len(sites)), shares[name], width=0.6, bottom=below, color=colour, alpha=0.6, label=name)
        below += shares[name].to_numpy()
    _sites_below(axes, sites)
    axes.set_ylim(0, 1.3)  # room for the legend
    axes.set_yticks([0, 0.5, 1])
    axes.legend(loc="upper center", ncols=min(len(shares.columns), 3), fontsize=6, columnspacing=1, borderpad=0.1)
    axes.set_title(f"Classes of {results.endpoint}")
    table = shares.rename_axis("site").reset_index().melt("site", var_name="class", value_name="value")
    return table.assign(panel="label")


def _numbers(axes: Axes, results: Results, bags: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """Every patient's number, with the site's median."""
    for column, site in enumerate(sites):
        mine = bags.loc[bags["site"] == site, "label"].to_numpy(dtype=float)
        jitter = rng(0, "jitter", site, "label").uniform(-0.2, 0.2, len(mine))
        colour = site_colour(site, results.sites)
        dots(axes, column + jitter, mine, colour)
        axes.hlines(np.median(mine), column - 0.3, column + 0.3, color=colour, linewidth=1.6)
    _sites_below(axes, sites)
    axes.set_title(column_name(results.endpoint))
    return bags[["site", "patient_id", "label"]].rename(columns={"label": "value"}).assign(panel="label")


def _sites_below(axes: Axes, sites: Sequence[str]) -> None:
    """The sites' names side by side, else upright where that fits; else no more than ticks in the order of the legend."""
    step = PANEL_MM / len(sites)
    axes.set_xlim(-0.5, len(sites) - 0.5)
    if all(text_mm(site, 6.5) <= step - 1 for site in sites):
        axes.set_xticks(range(len(sites)), sites)
    elif step >= UPRIGHT_LINE_MM:
        axes.set_xticks(
            range(len(sites)), [fitted(site, UPRIGHT_MM / 2, 5.2)[0] for site in sites], rotation=90, fontsize=5.2
        )
    else:
        axes.set_xticks(range(len(sites)), [""] * len(sites))
