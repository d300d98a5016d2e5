"""Metrics and comparisons -> the sentences at the top: what the numbers say and no more, each with its interval."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.figures.arms import arm, baseline_arm, input_name
from mil.figures.cohort_table import p_words
from mil.figures.how_made import how_tested, is_few, method_in_words
from mil.figures.layout import capital, signed, with_interval
from mil.figures.style import strategy_name
from mil.metrics.score import primary
from mil.report.cells import signed_interval
from mil.results.results import Absent, Results
from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OTHER_SITES, OWN_SITE, TRAINING_SITES
from mil.statistics.held_out import low_by_chance
from mil.tables import by_slide

MOST_NAMED = 5
MOST_LISTED = 8


@dataclass(frozen=True)
class Fact:
    """A number in large type and what it counts."""

    number: str
    what: str


@dataclass(frozen=True)
class Claim:
    """What the numbers say in a sentence, and the numbers."""

    text: str
    numbers: str


def headline(results: Results) -> list[Fact]:
    """Sites, patients, slides, tiles and the main experiment's primary measure."""
    facts = []
    try:
        bags, census = results.bags(results.endpoint), results.census()
    except Absent:
        return facts
    used = by_slide(bags)["slide_id"]
    tiles = census.loc[census["slide_id"].isin(used), "num_tiles"].sum()
    training, external = len(results.training_sites), len(results.external_sites)
    trains = f"{training} that {'trains' if training == 1 else 'train'}"
    facts += [
        Fact(
            str(training + external),
            f"site{'s' if training + external > 1 else ''}, {trains} and {external or 'no'} external",
        ),
        Fact(f"{len(bags):,}", f"patients{_positive(results, bags)}{_further(results)}"),
        Fact(f"{len(used):,}", f"slides, {int(tiles):,} tiles"),
    ]
    row = _main_row(results)
    if row is not None:
        name = strategy_name(results.experiments[results.main].strategy.name)
        value, space, interval = with_interval(row["value"], row["low"], row["high"]).partition(" ")
        facts.append(Fact(value, f"{results.kind.primary.title} of {name} on {row['site']}{space}{interval}"))
    return facts


def _positive(results: Results, bags: pd.DataFrame) -> str:
    having = results.kind.having
    return f", {bags['label'].mean():.0%} {having} {results.endpoint}" if having else ""


def _further(results: Results) -> str:
    number = len(results.without_label(results.endpoint))
    return f"; {number:,} more without a label" if number else ""


def claims(results: Results) -> list[Claim]:
    """The findings, the main one first."""
    findings = [_leaks(results), _performance(results), _strategies(results), _baselines(results)]
    findings += [_inputs(results), _localised(results)]
    return [claim for claim in findings if claim is not None]


def leak_warning(results: Results) -> str:
    """What the leak checks found and the settings let pass (`metrics.on_leak: flag`); '' where nothing."""
    try:
        table = results.deep_check()
    except Absent:
        return ""
    leaks = table[table["state"] == "leak"]
    if leaks.empty:
        return ""
    named = _enumerated([f"{row.check}, {row.subject}" for row in leaks.itertuples()])
    return (
        f"The leak checks found {len(leaks)} leak{'s' if len(leaks) > 1 else ''} ({named}). Settings let the run go on; "
        "the numbers of this report may show the leak and not the tissue. The table of leak checks says what was found."
    )


def _leaks(results: Results) -> Claim | None:
    warning = leak_warning(results)
    return Claim(warning, "Read every finding below with this in mind.") if warning else None


def _main_row(results: Results) -> pd.Series | None:
    try:
        table = results.metrics(results.main)
    except Absent:
        return None
    rows = _on_group(primary(table).dropna(subset=["value"]))
    if (rows["trained_on"] == ENSEMBLE).any():
        rows = rows[rows["trained_on"].isin([ENSEMBLE, OWN_SITE])]
    return rows.iloc[0] if len(rows) else None


def _on_group(table: pd.DataFrame) -> pd.DataFrame:
    """The rows on all external sites together; where there are none, those on all training sites."""
    external = table[table["site"] == EXTERNAL_SITES]
    return external if len(external) else table[table["site"] == TRAINING_SITES]


def _performance(results: Results) -> Claim | None:
    row = _main_row(results)
    if row is None:
        return _unscored(results)
    experiment = results.experiments[results.main]
    name = f"{strategy_name(experiment.strategy.name)} ({input_name(experiment)})"
    kind = results.kind
    if not np.isfinite(row["low"]):
        few = "there are too few patients to say" if is_few(str(row["method"])) else "it cannot be said"
        text = f"On {row['site']} {few} whether {name} does better than chance"
    elif row["low"] > (kind.primary.chance or 0.0):
        text = f"On {row['site']} {name} {kind.better}"
    elif row["high"] < (kind.primary.chance or 0.0):
        text = f"On {row['site']} {name} {kind.worse}"
    else:
        text = f"On {row['site']} {name} cannot be told from chance"
    counted = f", {int(row['positives'])} {kind.outcome}" if kind.outcome else ""
    method = (
        f"{results.config.metrics.confidence:.0%} interval ({method_in_words(row['method'])})"
        if np.isfinite(row["low"])
        else row["method"]
    )
    return Claim(
        f"{text}: {kind.primary.title} {with_interval(row['value'], row['low'], row['high'])}.",
        f"{int(row['patients'])} patients{counted}; {method}, {kind.pairs}."
        f"{' Each patient by models of the other sites.' if row['trained_on'] == OTHER_SITES else ''}"
        f"{_left_out(results, row)}{_no_external(results, row)}{_below_chance(results, row)}",
    )


def _left_out(results: Results, row: pd.Series) -> str:
    """The sites of a group whose patients are in no pair; '' where all sites count, or predictions are not here."""
    sites = list(_unpaired(results, results.main, row["trained_on"], row))
    reason = f"no {results.kind.primary.title} can be formed there"
    return f" It leaves out the patients of {_enumerated(sites)}: {reason}." if sites else ""


def _no_external(results: Results, row: pd.Series) -> str:
    """Why the measure is of the training sites though there are external ones; '' where that is not so."""
    table = primary(results.metrics(results.main))
    external = table[table["site"] == EXTERNAL_SITES]
    if row["site"] != TRAINING_SITES or external.empty:
        return ""
    reason = str(external["method"].iloc[0]).removeprefix("not defined: ")
    return f" On {EXTERNAL_SITES} no {results.kind.primary.title} is defined: {reason}."


def _unpaired(results: Results, experiment: str, trained_on: str, row: pd.Series) -> dict[str, int]:
    """Patients of each site of the row's split and group of sites that are in no pair of the arm's measure."""
    key = (trained_on, row["split"], row["site"])
    with suppress(Absent):
        for scope in results.scopes(experiment):
            if (scope.trained_on, scope.split, scope.site) == key:
                parts = scope.table.groupby("site")
                return {str(site): len(part) for site, part in parts if not results.kind.has_within(part)}
    return {}


def _below_chance(results: Results, row: pd.Series) -> str:
    """How often chance makes the AUROC of held-out patients as low as this; '' unless it is below 0.5 without an interval that holds 0.5."""
    if not results.kind.two_classes or row["site"] != TRAINING_SITES or not row["value"] < 0.5 or row["high"] >= 0.5:
        return ""
    where_to_look = "Look first for labels that were exchanged, or that mean the opposite at one site."
    if np.isfinite(row["high"]):
        return f" Of cohorts whose labels mean nothing, up to 3 in 100 have an interval below 0.5 as well (simulated). {where_to_look}"
    patients, positives = int(row["patients"]), int(row["positives"])
    low = low_by_chance(positives, patients - positives)
    said = f" Where labels mean nothing, one in twenty cohorts of {patients} patients ({positives} positive) has a held-out AUROC below {low:.2f}"
    if row["value"] < low:
        return f"{said}. {where_to_look}"
    return f"{said}, so that {row['value']:.2f} does not show that the model ranks in reverse."


def _unscored(results: Results) -> Claim:
    try:
        kind = results.kind
    except Absent as reason:
        return Claim(f"There is no finding: {reason}.", "")
    if not kind.two_classes:
        return Claim(f"There is no finding: {kind.primary.title} is defined on no group of sites.", "")
    return Claim("There is no finding: no model was scored on patients of both classes.", "")


def _strategies(results: Results) -> Claim | None:
    """The federated experiment against pooled, local and the other strategies of its family."""
    name = results.federated
    return _differences(
        results, name, _comparisons(results, name, ("strategy", "training", "search")), "the other strategies"
    )


def _baselines(results: Results) -> Claim | None:
    """The federated experiment against what a hospital could use without slides, and against controls."""
    try:
        table = results.baseline_comparisons(results.endpoint)
    except Absent:
        return None
    names = [f"{kind}_pooled" for kind in ("clinical", "annotation", "colour")]  # the others stand in the table
    return _differences(results, results.federated, _on_group(table[table["second"].isin(names)]), "the baselines")


def _inputs(results: Results) -> Claim | None:
    """The main experiment against the same strategy on another encoder or model."""
    name = results.main
    rows = _comparisons(results, name, ("model", "encoder"))
    return _differences(results, name, rows, "other encoders and models", input_name(results.experiments[name]))


def _comparisons(results: Results, name: str, factors: tuple[str, ...]) -> pd.DataFrame:
    """Paired comparisons of the experiment `name`, on external sites if there are any, as main less other."""
    try:
        table = results.comparisons()
    except Absent:
        return pd.DataFrame()
    table = table[table["factor"].isin(factors)]
    turned = table[table["second"] == name]
    turned = turned.assign(
        second=turned["first"],
        second_trained_on=turned["first_trained_on"],
        first_trained_on=turned["second_trained_on"],
        difference=-turned["difference"],
        low_adjusted=-turned["high_adjusted"],
        high_adjusted=-turned["low_adjusted"],
    )
    parts = [part for part in (table[table["first"] == name], turned) if len(part)]
    return _on_group(pd.concat(parts) if parts else table.iloc[:0])


def _differences(results: Results, experiment: str, rows: pd.DataFrame, others: str, called: str = "") -> Claim | None:
    """Which differences of `experiment` (`called` so, else by its strategy) to `others` stand after correction, then their intervals."""
    rows = rows.dropna(subset=["difference"]) if len(rows) else rows
    if rows.empty:
        return None
    level = 1 - results.config.metrics.confidence
    name, site = called or strategy_name(results.experiments[experiment].strategy.name), rows["site"].iloc[0]
    said, above, below, open_ = [], [], [], []
    tested = rows["p_adjusted"].notna().any()
    title = results.kind.primary.title
    if len(rows) > MOST_LISTED:
        rows = rows.iloc[(~(rows["p_adjusted"] < level)).argsort(kind="stable")]
    for row in rows.itertuples():
        other = _other(results, str(row.factor), str(row.second), str(row.second_trained_on))
        stands = row.p_adjusted < level
        (open_ if not stands else above if row.difference > 0 else below).append(other)
        value = signed_interval(row.difference, row.low_adjusted, row.high_adjusted)
        said.append(f"{other} {value}, {p_words(row.p_adjusted)}" if tested else f"{other} {value}")
    parts = []
    if above:
        parts.append(f"a higher {title} than {_enumerated(above)}")
    if below:
        parts.append(f"a lower {title} than {_enumerated(below)}")
    if parts:
        text = f"On {site} {name} has {' and '.join(parts)}"
        text += f"; from {_enumerated(open_)} it cannot be told." if open_ else "."
    elif tested:
        text = f"On {site} no difference in {title} between {name} and {others} can be told from chance."
    else:
        few = rows["method"].astype(str).map(is_few).all()
        why = f"there are too few patients to test {name}" if few else f"{name} cannot be tested"
        text = f"On {site} {why} against {others}."
    correction = str(rows["correction"].iloc[0]).split(",")[0]
    listed, more = "; ".join(said[:MOST_LISTED]), rows["difference"].iloc[MOST_LISTED:]
    if len(more):
        listed += f"; {len(more)} others {signed(more.min())} to {signed(more.max())}"
    how = f" {1 - level:.0%} intervals and p after {correction}'s correction." if tested else ""
    counted = int(rows["patients"].max())
    row = rows.loc[rows["patients"].idxmax()]
    counted -= sum(_unpaired(results, experiment, row["first_trained_on"], row).values())
    numbers = f"{title} of {name} less that of: {listed}.{how} {how_tested(rows)} Paired on {counted} patients."
    caution = " A difference that cannot be told from chance is not shown to be none." if open_ and tested else ""
    return Claim(text, numbers + caution)


def _enumerated(names: list[str]) -> str:
    """`a, b and c`; of many no more than their number."""
    if len(names) > MOST_NAMED:
        return f"{len(names)} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _other(results: Results, factor: str, experiment: str, trained_on: str) -> str:
    """What the main experiment is compared with, in words."""
    if factor == "baseline":
        return f"baseline {baseline_arm(results, experiment).name.lower()}"
    if factor in {"strategy", "training", "search"}:
        kind, _, site = arm(results, experiment, trained_on).name.partition(", ")
        return f"{kind} ({site})" if site else kind
    return input_name(results.experiments[experiment])


def _localised(results: Results) -> Claim | None:
    try:
        table = results.localisation(results.main)
    except Absent:
        return None
    # Attention is shared out within a slide, so that it says where in the slide to look, not which slide's tiles weigh more.
    means = table[table["metric"] == "tile_auroc_mean"].dropna(subset=["value"])
    rows = _on_group(means)
    if rows.empty:
        return None
    row, name = rows.iloc[0], strategy_name(results.experiments[results.main].strategy.name)
    text = (
        f"The attention of {name} finds tiles that are positive in the truth, though no tile's truth was used in training"
        if row["low"] > 0.5
        else f"It cannot be shown that the attention of {name} finds tiles that are positive in the truth"
    )
    return Claim(
        f"{text}: tile AUROC {with_interval(row['value'], row['low'], row['high'])}.",
        f"{capital(row['site'])}, mean of {int(row['slides'])} slides of {int(row['patients'])} patients; interval: {row['method']}.",
    )
