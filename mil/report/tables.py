"""Tidy tables -> the report's tables: few columns, numbers with their intervals, sortable by the number itself."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from mil.endpoints import Endpoint
from mil.endpoints.multiclass import OF_CLASS
from mil.figures.arms import arm, baseline_arm, input_name
from mil.figures.cohort_table import p_text
from mil.figures.how_made import correction, how_tested, with_intervals
from mil.figures.layout import with_interval
from mil.figures.patient_flow import reason_name
from mil.figures.style import strategy_name
from mil.figures.table import folded
from mil.metrics.score import primary
from mil.registry import Registry
from mil.report.cells import Cell, ReportTable, count, number, signed_interval
from mil.results.results import Absent, Results
from mil.statistics.arms import EXTERNAL_SITES
from mil.tables import by_slide

TABLES: Registry[Callable[[Results], ReportTable]] = Registry("table")


def tables_of(results: Results, name: str) -> ReportTable | None:
    """The table `name`, or none where its input is absent or it would have no rows."""
    try:
        table = TABLES[name](results)
    except Absent:
        return None
    return table if table.rows else None


def table_of_figure(table: pd.DataFrame) -> ReportTable:
    """A figure that is a table: its text as it is; rows with a `Level` are sub-rows."""
    table, indented = folded(table)
    rows = [
        [Cell(str(cell), indented=is_level) for cell in row]
        for row, is_level in zip(table.to_numpy(dtype=str), indented, strict=True)
    ]
    return ReportTable("", "", [str(column) for column in table.columns], rows, sortable=False)


@TABLES.register("excluded")
def excluded(results: Results) -> ReportTable:
    """Every slide that was left out, with the stage and the reason."""
    census = results.census()
    used = by_slide(results.bags(results.endpoint))["slide_id"]
    rows = []
    for row in census[~census["slide_id"].isin(used)].sort_values(["site", "slide_id"]).itertuples():
        state = row.state if row.state != "ok" else "no_label"
        reason = (
            row.reason
            if row.state != "ok"
            else f"the patient has no label for {results.endpoint}: predicted, but not counted"
        )
        rows.append(
            [Cell(row.site), Cell(row.patient_id), Cell(row.slide_id), Cell(reason_name(state)), Cell(str(reason))]
        )
    return ReportTable(
        "Slides that were left out",
        "Every slide of the sheet that is not in the analysis.",
        ["Site", "Patient", "Slide", "State", "Reason"],
        rows,
    )


@TABLES.register("without_label")
def without_label(results: Results) -> ReportTable:
    """The scores of patients whose label is not known, by site."""
    scores, name = results.scores_without_label(results.main), results.kind.quantity
    columns = [column for column in scores if str(column).startswith(name)]
    measured, rows = set(results.bags(results.endpoint)["site"]), []
    for site in [site for site in results.sites if site in set(scores["site"])]:
        part = scores[scores["site"] == site]
        spread = [part[column].quantile([0.5, 0, 1]) for column in columns]
        said = [f"{middle:z.2f} ({low:z.2f} to {high:z.2f})".replace("-", "−") for middle, low, high in spread]
        cells = [Cell(text, float(middle)) for text, (middle, *_) in zip(said, spread, strict=True)]
        measure = "of the other patients" if site in measured else "none, as no patient has a label"
        rows.append([Cell(site), Cell(part["role"].iloc[0]), count(len(part)), *cells, Cell(measure)])
    return ReportTable(
        "Patients without a label",
        f"Scores of patients whose label is not known, by models of {strategy_name(results.experiments[results.main].strategy.name)} that did "
        f"not train on them: median (lowest to highest). No measure, test or curve counts these patients. Each patient's score is in "
        f"predictions/{results.main}.patients.csv in the results folder.",
        [
            "Site",
            "Role",
            "Patients",
            *(name.replace("_", " ").capitalize() for name in map(str, columns)),
            f"{results.kind.primary.title} of the site",
        ],
        rows,
    )


@TABLES.register("performance")
def performance(results: Results) -> ReportTable:
    """The primary measure of every arm at every site, with its interval or why there is none."""
    kind = results.kind
    table, rows = _measured(results, _alike(results))
    if kind.outcome:
        rows = [[*row[:-1], count(positives), row[-1]] for row, positives in zip(rows, table["positives"], strict=True)]
    return ReportTable(
        f"{kind.primary.title} by model, strategy and site",
        f"{kind.primary.title} of every model {with_intervals(table, results.config.metrics.confidence)}. "
        f"Transfer: patients of another training site. On groups of sites only {kind.pairs} count. Where a value or interval is missing, the "
        "column method of metrics/*.csv in the results folder says why.",
        [
            *(cell.text for cell in _endpoint(results, "Endpoint")),
            *SCORED,
            *([kind.outcome.capitalize()] if kind.outcome else []),
            kind.primary.title,
        ],
        rows,
    )


@TABLES.register("further_endpoints")
def further_endpoints(results: Results) -> ReportTable:
    """The primary measure of every arm whose endpoint is of another kind than the main one's."""
    others = [name for name in results.experiments if name not in _alike(results)]
    if not others:
        raise Absent("every endpoint of the run is measured alike")
    table, rows = _measured(results, others)
    titles = [Cell(results.kind_of(name).primary.title) for name in table["experiment"]]
    return ReportTable(
        "Further endpoints",
        f"The primary measure of every model whose endpoint is of another kind than {results.endpoint}, "
        f"{with_intervals(table, results.config.metrics.confidence)}. On groups of sites patients are compared within their site. "
        "Findings and figures are about the main experiment's endpoint; metrics/*.csv in the results folder has every measure of the others.",
        ["Endpoint", "Measure", *SCORED, "Value"],
        [[row[0], title, *row[1:]] for row, title in zip(rows, titles, strict=True)],
    )


SCORED = ("Input and model", "Strategy", "Scored on", "Split", "Patients")


def _measured(results: Results, names: list[str]) -> tuple[pd.DataFrame, list[list[Cell]]]:
    """The primary measures of these experiments: the table's rows, and their cells: endpoint (of several), `SCORED`, value."""
    table = primary(results.metrics(*names))
    if len(results.external_sites) == 1:
        table = table[table["site"] != EXTERNAL_SITES]
    rows = [
        [
            *_endpoint(results, results.experiments[row.experiment].endpoint),
            Cell(input_name(results.experiments[row.experiment])),
            Cell(arm(results, row.experiment, row.trained_on).name),
            Cell(row.site),
            Cell(row.split.replace("_", "-")),
            count(row.patients),
            Cell(with_interval(row.value, row.low, row.high), row.value, strong=True),
        ]
        for row in table.itertuples()
    ]
    return table, rows


def _alike(results: Results) -> list[str]:
    """The experiments whose endpoint is of the main one's kind: what is measured alike."""
    return [name for name in results.experiments if results.kind_of(name).name == results.kind.name]


def _endpoint(results: Results, name: str) -> list[Cell]:
    """The cell of an endpoint, where the run has several."""
    return [Cell(name)] if len(results.endpoints) > 1 else []


@TABLES.register("comparisons")
def comparisons(results: Results) -> ReportTable:
    """Paired differences between strategies, models and encoders."""
    table = results.comparisons()
    table = table[table["first"].isin(_alike(results))]
    title = results.kind.primary.title
    rows = []
    for row in table.itertuples():
        first, second = arm(results, row.first, row.first_trained_on), arm(results, row.second, row.second_trained_on)
        named = [f"{side.name} ({input_name(results.experiments[side.experiment])})" for side in (first, second)]
        if row.factor == "strategy":
            named = [f"{first.name}", f"{second.name} ({input_name(results.experiments[second.experiment])})"]
        rows.append(
            [
                *_endpoint(results, str(row.endpoint)),
                Cell(str(row.factor)),
                Cell(f"{named[0]} − {named[1]}"),
                Cell(row.site),
                count(row.patients),
                Cell(signed_interval(row.difference, row.low_adjusted, row.high_adjusted), row.difference, strong=True),
                Cell(p_text(row.p_adjusted), number(row.p_adjusted)),
            ]
        )
    corrected = correction(table)
    how = (
        f"Intervals and p are after {corrected}: an interval leaves 0 out exactly "
        f"where p is below {1 - results.config.metrics.confidence:.2g}. Uncorrected ones stand in comparisons.csv. "
        if corrected
        else ""
    )
    return ReportTable(
        f"Paired comparisons of {title}",
        f"Difference on the same patients. {how}{how_tested(table)} On groups of sites only {results.kind.pairs} count.",
        [
            *(cell.text for cell in _endpoint(results, "Endpoint")),
            *("Factor", "Difference", "Scored on", "Patients", f"Δ{title}", "p adjusted"),
        ],
        rows,
    )


MAIN_METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "prevalence": "Prevalence",
    "brier": "Brier",
    "calibration_slope": "Slope",
    "calibration_intercept": "Intercept",
    "ece": "ECE",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "balanced_accuracy": "Balanced accuracy",
}


def _titles(kind: Endpoint) -> dict[str, str]:
    """The measures that stand in the table of the main model, and their titles."""
    if kind.two_classes:
        return MAIN_METRICS
    classes = {OF_CLASS + name: f"AUROC {name}" for name in kind.spec.classes}
    return {measure.name: measure.title for measure in (kind.primary, *kind.further)} | classes


@TABLES.register("metrics")
def metrics_of_main(results: Results) -> ReportTable:
    """Every metric of the main experiment by site."""
    table, titles = results.metrics(results.main), _titles(results.kind)
    table = table[table["split"] != "transfer"]
    if results.kind.two_classes:  # as everywhere: on groups of sites within sites
        table = pd.concat([primary(table).assign(metric="auroc"), table[table["metric"] != "auroc"]])
    table = table[table["metric"].isin(titles)]
    present = [name for name in titles if name in set(table["metric"])]
    measured = table[table["metric"] == "auroc"] if results.kind.two_classes else table
    said = with_intervals(measured, results.config.metrics.confidence)
    rows = []
    for (trained_on, site), part in table.groupby(["trained_on", "site"], sort=False):
        if site == EXTERNAL_SITES and len(results.external_sites) == 1:
            continue
        by_metric = part.drop_duplicates("metric").set_index("metric")
        cells = [Cell(str(site)), Cell(arm(results, results.main, str(trained_on)).name)]
        for name in present:
            if name in by_metric.index:
                value, low, high = (float(by_metric.loc[name, column]) for column in ("value", "low", "high"))
                cells.append(Cell(with_interval(value, low, high), number(value)))
            else:
                cells.append(Cell("–"))
        rows.append(cells)
    return ReportTable(
        "The main model's metrics",
        f"Every measure of the main model by site, {said}; a dash is not defined there. "
        f"On several sites all patients are laid together here, sites' levels included."
        if not results.kind.two_classes
        else f"Every measure of the main model by site: AUROC {said}, the others with intervals by "
        "methods that keep their level with few patients (named in the column method of metrics/*.csv in the results folder). On groups of sites AUROC is within sites. AUPRC has to be read beside the prevalence, which a model that knows nothing reaches; slope 1 and intercept 0 are perfect calibration. "
        "Sensitivity and specificity are at thresholds that were chosen on inner folds, where the run kept their predictions.",
        ["Site", "Strategy", *(titles[name] for name in present)],
        rows,
    )


@TABLES.register("leaks")
def leaks(results: Results) -> ReportTable:
    """What `mil check --deep` found."""
    table = results.deep_check()
    rows = [
        [
            Cell(str(row.state), strong=row.state != "ok"),
            Cell(str(row.check)),
            Cell(str(row.subject)),
            Cell(str(row.reason) if pd.notna(row.reason) else ""),
        ]
        for row in table.itertuples()
    ]
    return ReportTable(
        "Leak checks",
        "Could a label, or a patient who is to be judged, have got into training? Each check, and what it found.",
        ["State", "Check", "Subject", "Finding"],
        rows,
    )


@TABLES.register("baseline_comparisons")
def baseline_comparisons(results: Results) -> ReportTable:
    """The federated experiment less each baseline on the same patients."""
    table = results.baseline_comparisons(results.endpoint)
    name = strategy_name(results.experiments[results.federated].strategy.name)
    rows = [
        [
            Cell(f"{name} − {baseline_arm(results, str(row.second)).name}"),
            Cell(str(row.site)),
            count(row.patients),
            Cell(with_interval(row.first_value, np.nan, np.nan), row.first_value),
            Cell(with_interval(row.second_value, np.nan, np.nan), row.second_value),
            Cell(signed_interval(row.difference, row.low_adjusted, row.high_adjusted), row.difference, strong=True),
            Cell(p_text(row.p_adjusted), number(row.p_adjusted)),
        ]
        for row in table.itertuples()
    ]
    corrected = correction(table)
    return ReportTable(
        f"{name} against baselines",
        "Paired differences of AUROC on the same patients (within sites where there are several). "
        f"{f'Intervals and p are after {corrected}. ' if corrected else ''}{how_tested(table)} Baselines are pooled linear models on the same folds, trained as the experiments are.",
        ["Difference", "Scored on", "Patients", "Model", "Baseline", "ΔAUROC", "p adjusted"],
        rows,
    )


@TABLES.register("localisation")
def localisation(results: Results) -> ReportTable:
    """Attention against truth, tile by tile."""
    table = results.localisation().dropna(subset=["value"])
    said = with_intervals(table, results.config.metrics.confidence)
    names = {"tile_auroc_mean": "mean over slides", "tile_auroc_pooled": "all tiles pooled"}
    rows = [
        [
            *_endpoint(results, row.endpoint),
            Cell(input_name(results.experiments[row.experiment])),
            Cell(arm(results, row.experiment, "").name if row.strategy != "local" else "Local"),
            Cell(row.site),
            count(row.patients),
            count(row.slides),
            count(row.tiles),
            count(row.positive_tiles),
            Cell(names.get(str(row.metric), str(row.metric))),
            Cell(with_interval(row.value, row.low, row.high), row.value, strong=True),
        ]
        for row in table.itertuples()
    ]
    return ReportTable(
        "Attention against the truth of every tile",
        f"AUROC of attention for tiles that are positive in the truth, {said}. 0.5 is what a model gets that looks at all tiles alike.",
        [
            *(cell.text for cell in _endpoint(results, "Endpoint")),
            *("Input and model", "Strategy", "Site", "Patients", "Slides", "Tiles", "Positive tiles", "Over"),
            "Tile AUROC",
        ],
        rows,
    )
