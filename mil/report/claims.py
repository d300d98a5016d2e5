"""Metrics and comparisons -> the sentences at the top: what came out, with its interval, and nothing that is not in a table."""

from dataclasses import dataclass

import pandas as pd

from mil.figures.arms import arm, baseline_arm, input_name
from mil.figures.results import Absent, Results
from mil.figures.style import strategy_name
from mil.metrics.arms import ENSEMBLE, EXTERNAL_SITES, OWN_SITE, TRAINING_SITES
from mil.metrics.score import primary
from mil.report.tables import signed_interval, with_interval


@dataclass(frozen=True)
class Fact:
    """A number in large type and what it counts."""

    number: str
    what: str


def headline(results: Results) -> list[Fact]:
    """Sites, patients, slides, tiles and the main AUROC."""
    facts = []
    try:
        bags, census = results.bags(results.endpoint), results.census()
    except Absent:
        return facts
    used = bags.assign(slide_id=bags["slides"].astype(str).str.split(";")).explode("slide_id")["slide_id"]
    tiles = census.loc[census["slide_id"].isin(used), "num_tiles"].sum()
    training, external = len(results.training_sites), len(results.external_sites)
    facts += [
        Fact(str(training + external), f"sites, {training} that train and {external} external"),
        Fact(f"{len(bags):,}", f"patients, {bags['label'].mean():.0%} positive for {results.endpoint}"),
        Fact(f"{len(used):,}", f"slides, {int(tiles):,} tiles"),
    ]
    row = _main_auroc(results)
    if row is not None:
        name = strategy_name(results.experiments[results.main].strategy.name)
        facts.append(
            Fact(f"{row['value']:.2f}", f"AUROC of {name} on {row['site']} [{row['low']:.2f}, {row['high']:.2f}]")
        )
    return facts


def claims(results: Results) -> list[str]:
    """The findings in sentences, the main one first."""
    found = [_performance(results), _strategies(results), _baselines(results), _inputs(results), _localised(results)]
    return [sentence for sentence in found if sentence]


def _main_auroc(results: Results) -> pd.Series | None:
    try:
        table = results.metrics(results.main)
    except Absent:
        return None
    table = primary(table).dropna(subset=["value"])
    for site in (EXTERNAL_SITES, TRAINING_SITES):
        rows = table[table["site"] == site]
        if len(rows):
            best = (
                rows[rows["trained_on"].isin([ENSEMBLE, OWN_SITE])] if (rows["trained_on"] == ENSEMBLE).any() else rows
            )
            return best.iloc[0]
    return None


def _performance(results: Results) -> str:
    row = _main_auroc(results)
    if row is None:
        return ""
    experiment = results.experiments[results.main]
    return (
        f"On {row['site']} ({int(row['patients'])} patients, {int(row['positives'])} positive), "
        f"{strategy_name(experiment.strategy.name)} ({input_name(experiment)}) reaches an AUROC of "
        f"{with_interval(row['value'], row['low'], row['high'])}."
    )


def _strategies(results: Results) -> str:
    """The main experiment against the other strategies of its family."""
    rows = _comparisons(results, ("strategy",))
    if rows.empty:
        return ""
    name = strategy_name(results.experiments[results.main].strategy.name)
    return f"{name} against the other strategies on {rows['site'].iloc[0]}: {_listed(results, rows)}"


def _baselines(results: Results) -> str:
    """The main experiment against what a hospital could use without slides, and against controls."""
    try:
        table = results.baseline_comparisons(results.endpoint)
    except Absent:
        return ""
    told = [f"{kind}_pooled" for kind in ("clinical", "annotation", "colour")]  # the others stand in the table
    table = table[(table["method"] == "DeLong, paired") & table["second"].isin(told)]
    for site in (EXTERNAL_SITES, TRAINING_SITES):
        rows = table[table["site"] == site]
        if len(rows):
            name = strategy_name(results.experiments[results.main].strategy.name)
            return f"{name} against baselines on the same patients of {site}: {_listed(results, rows)}"
    return ""


def _inputs(results: Results) -> str:
    """The main experiment against the same strategy on another encoder or model."""
    rows = _comparisons(results, ("model", "encoder"))
    if rows.empty:
        return ""
    main = results.experiments[results.main]
    return (
        f"{strategy_name(main.strategy.name)} on {input_name(main)} against the same strategy on another encoder or model, on "
        f"{rows['site'].iloc[0]}: {_listed(results, rows)}"
    )


def _comparisons(results: Results, factors: tuple[str, ...]) -> pd.DataFrame:
    """DeLong's comparisons of the main experiment, on external sites if there are any, as main less other."""
    try:
        table = results.comparisons()
    except Absent:
        return pd.DataFrame()
    table = table[(table["method"] == "DeLong, paired") & table["factor"].isin(factors)]
    turned = table[table["second"] == results.main]
    turned = turned.assign(
        second=turned["first"],
        second_trained_on=turned["first_trained_on"],
        difference=-turned["difference"],
        low=-turned["high"],
        high=-turned["low"],
    )
    parts = [part for part in (table[table["first"] == results.main], turned) if len(part)]
    table = pd.concat(parts) if parts else table.iloc[:0]
    for site in (EXTERNAL_SITES, TRAINING_SITES):
        if (table["site"] == site).any():
            return table[table["site"] == site]
    return table.iloc[:0]


def _listed(results: Results, rows: pd.DataFrame) -> str:
    """Each difference with its interval, then which of them stand after correction."""
    said, standing = [], []
    for row in rows.itertuples():
        name = _other(results, str(row.factor), str(row.second), str(row.second_trained_on))
        said.append(f"{signed_interval(row.difference, row.low, row.high)} in AUROC to {name}")
        if row.p_adjusted < 1 - results.config.metrics.confidence:
            standing.append(name)
    correction = str(rows["correction"].iloc[0]).split(",")[0]
    verdict = (
        f"after {correction}'s correction, of these only the difference to {' and to '.join(standing)} is told from zero"
        if standing and len(standing) < len(rows)
        else f"all are told from zero after {correction}'s correction"
        if standing
        else f"none is told from zero after {correction}'s correction"
    )
    return f"{'; '.join(said)}. {verdict[0].upper()}{verdict[1:]}."


def _other(results: Results, factor: str, experiment: str, trained_on: str) -> str:
    """What the main experiment is compared with, in words."""
    if factor == "baseline":
        return baseline_arm(results, experiment).name.lower()
    if factor == "strategy":
        return arm(results, experiment, trained_on).name
    return input_name(results.experiments[experiment])


def _localised(results: Results) -> str:
    try:
        table = results.localisation(results.main)
    except Absent:
        return ""
    table = table[table["metric"] == "tile_auroc_pooled"].dropna(subset=["value"])
    for site in (EXTERNAL_SITES, TRAINING_SITES):
        rows = table[table["site"] == site]
        if len(rows):
            row = rows.iloc[0]
            return (
                f"The attention of {strategy_name(results.experiments[results.main].strategy.name)} finds the tiles that "
                "are positive in the truth with a tile AUROC of "
                f"{with_interval(row['value'], row['low'], row['high'])} on {site} ({int(row['tiles']):,} tiles of "
                f"{int(row['patients'])} patients), though no tile's truth was used in training."
            )
    return ""
