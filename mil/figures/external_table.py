"""Every model and baseline at the external sites, with intervals: the table that a hospital would look at."""

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import arm, baseline_arm, input_name
from mil.figures.how_made import with_intervals
from mil.figures.layout import capital, with_interval
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import ENSEMBLE_NAME, strategy_name
from mil.figures.table import table_picture
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES

BASELINES = "Baselines are linear models. Labels permuted once can give any AUROC; the null controls show what many permutations give."


@figure(
    "External sites: every model and baseline",
    needs=("metrics", "baselines"),
    endpoints=ANY,
    chapter="performance",
    number="F3b, T2",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row an arm, a column an external site and, where there are several, all of them together."""
    if not results.external_sites:
        raise Absent("there is no external site with labels")
    bags = results.bags(results.endpoint)
    sites = [site for site in results.external_sites if site in set(bags["site"])]  # a site may have no usable slide
    columns = [*sites, *([EXTERNAL_SITES] if len(sites) > 1 else [])]
    models, baselines = _model_metrics(results), _baseline_metrics(results)
    rows = [*_models(results, models, columns), *_baselines(results, baselines, columns)]
    if not rows:
        raise Absent("no model was scored at an external site")
    kind = results.kind
    counted = bool(kind.outcome)
    heads_of = {"binary": "positives and ", "survival": "events and "}.get(kind.name, "")
    numbers = bags.assign(label=bags["label"] if counted else 0).groupby("site")["label"].agg(["size", "sum"])
    heads = [
        _head(site, numbers.loc[site], counted) if site in numbers.index else "All, within sites" for site in columns
    ]
    table = pd.DataFrame(rows, columns=["Input and model", "Strategy", *heads])
    return Drawn(
        figure=table_picture(_unrepeated(table), left=2),
        data=table,
        is_table=True,
        n=f"{int(numbers.loc[sites, 'size'].sum())} patients at {len(sites)} external site{'s' if len(sites) > 1 else ''}",
        caption=(
            f"{kind.primary.title} for {results.endpoint} at external sites, which no training or selection read, "
            f"{with_intervals(pd.concat([models, baselines]), results.config.metrics.confidence)}. In the heads {heads_of}patients. Local models are named by the site that they were trained on. "
            f"{BASELINES if len(baselines) else ''}"
        ),
    )


def _head(site: str, numbers: pd.Series, counted: bool) -> str:
    positives = f"{int(numbers['sum'])}/" if counted else ""
    return f"{site} ({positives}{int(numbers['size'])})"


def _model_metrics(results: Results) -> pd.DataFrame:
    metrics = primary(results.metrics())
    return metrics[(metrics["endpoint"] == results.endpoint) & (metrics["split"] == "external")]


def _baseline_metrics(results: Results) -> pd.DataFrame:
    try:
        metrics = primary(results.baseline_metrics(results.endpoint))
    except Absent:
        return pd.DataFrame(columns=["experiment"])
    metrics = metrics[metrics["split"] == "external"]
    # of models a site only their ensemble is shown
    return metrics if len(results.training_sites) == 1 else metrics[~metrics["trained_on"].isin(results.sites)]


def _models(results: Results, metrics: pd.DataFrame, columns: list[str]) -> list[list[str]]:
    arms = [
        arm(results, name, on)
        for name, on in metrics[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    ]
    rows = []
    for name in results.experiments:
        for row_arm in sorted(
            (row_arm for row_arm in arms if row_arm.experiment == name), key=lambda row_arm: row_arm.order
        ):
            part = metrics[(metrics["experiment"] == name) & (metrics["trained_on"] == row_arm.trained_on)]
            rows.append([capital(input_name(results.experiments[name])), row_arm.name, *_cells(part, columns)])
    return rows


def _baselines(results: Results, metrics: pd.DataFrame, columns: list[str]) -> list[list[str]]:
    rows = []
    names = sorted(metrics["experiment"].unique(), key=lambda name: baseline_arm(results, name).order)
    for name in names:
        for trained_on, part in metrics[metrics["experiment"] == name].groupby("trained_on", sort=False):
            strategy = ENSEMBLE_NAME if trained_on == ENSEMBLE else strategy_name(name.rsplit("_", 1)[1])
            rows.append([f"Baseline: {baseline_arm(results, name).name.lower()}", strategy, *_cells(part, columns)])
    return rows


def _unrepeated(table: pd.DataFrame) -> pd.DataFrame:
    """The first column is blank where it repeats the row above."""
    first = table["Input and model"]
    return table.assign(**{"Input and model": first.where(first != first.shift(), "")})


def _cells(part: pd.DataFrame, columns: list[str]) -> list[str]:
    by_site = part.set_index("site")
    cells = []
    for site in columns:
        value, low, high = by_site.loc[site, ["value", "low", "high"]] if site in by_site.index else (np.nan,) * 3
        cells.append(with_interval(value, low, high))
    return cells
