"""Every model and baseline at the external sites, with intervals: the table that a hospital would look at."""

import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import arm, baseline_arm, input_name
from mil.figures.layout import capital
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import strategy_name
from mil.figures.table import table_picture
from mil.metrics.arms import EXTERNAL_SITES
from mil.metrics.score import primary


@figure("External sites: every model and baseline", needs=("metrics", "baselines"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row an arm, a column an external site and, where there are several, all of them together."""
    if not results.external_sites:
        raise Absent("there is no external site")
    columns = [*results.external_sites, *([EXTERNAL_SITES] if len(results.external_sites) > 1 else [])]
    rows = [*_models(results, columns), *_baselines(results, columns)]
    if not rows:
        raise Absent("no model was scored at an external site")
    numbers = results.bags(results.endpoint).groupby("site")["label"].agg(["size", "sum"])
    heads = [
        f"{site} ({int(numbers.loc[site, 'sum'])}/{int(numbers.loc[site, 'size'])})"
        if site in numbers.index
        else "All, within sites"
        for site in columns
    ]
    table = pd.DataFrame(rows, columns=["Input and model", "Strategy", *heads])
    return Drawn(
        figure=table_picture(table, left=2),
        data=table,
        is_table=True,
        n=f"{int(numbers.loc[results.external_sites, 'size'].sum())} patients at {len(results.external_sites)} external sites",
        caption=(
            f"AUROC for {results.endpoint} at external sites, which no training or selection read, with {results.config.metrics.confidence:.0%} "
            "intervals (DeLong, logit scale). In the heads positives and patients. Local models are named by the site that they were trained on."
        ),
    )


def _models(results: Results, columns: list[str]) -> list[list[str]]:
    metrics = primary(results.metrics())
    metrics = metrics[(metrics["endpoint"] == results.endpoint) & (metrics["split"] == "external")]
    arms = [
        arm(results, name, on)
        for name, on in metrics[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    ]
    rows = []
    for name in results.experiments:
        for one in sorted((one for one in arms if one.experiment == name), key=lambda one: one.order):
            part = metrics[(metrics["experiment"] == name) & (metrics["trained_on"] == one.trained_on)]
            rows.append([capital(input_name(results.experiments[name])), one.name, *_cells(part, columns)])
    return rows


def _baselines(results: Results, columns: list[str]) -> list[list[str]]:
    try:
        metrics = primary(results.baseline_metrics(results.endpoint))
    except Absent:
        return []
    metrics = metrics[metrics["split"] == "external"]
    if len(results.training_sites) > 1:  # of models a site only their ensemble is shown
        metrics = metrics[~metrics["trained_on"].isin(results.sites)]
    rows = []
    names = sorted(metrics["experiment"].unique(), key=lambda name: baseline_arm(results, name).order)
    for name in names:
        for trained_on, part in metrics[metrics["experiment"] == name].groupby("trained_on", sort=False):
            strategy = "ensemble" if trained_on == "ensemble" else name.rsplit("_", 1)[1]
            rows.append([baseline_arm(results, name).name, strategy_name(strategy), *_cells(part, columns)])
    return rows


def _cells(part: pd.DataFrame, columns: list[str]) -> list[str]:
    by_site = part.set_index("site")
    return [
        f"{by_site.loc[site, 'value']:.2f} [{by_site.loc[site, 'low']:.2f}, {by_site.loc[site, 'high']:.2f}]"
        if site in by_site.index and pd.notna(by_site.loc[site, "value"])
        else "–"
        for site in columns
    ]
