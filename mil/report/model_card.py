"""A run of training -> its model card in Markdown: data, use, performance, subgroups, calibration, limits.

The headings are those of Mitchell et al., Model cards for model reporting, FAT* 2019, doi:10.1145/3287560.3287596.
"""

import json
from collections.abc import Callable, Iterator

import pandas as pd

from mil.encoders.table import ENCODERS
from mil.figures.arms import input_name
from mil.figures.layout import with_interval
from mil.figures.style import model_name, strategy_name
from mil.metrics.score import primary
from mil.report.claims import leak_warning
from mil.report.limits import limits
from mil.results.results import Absent, Results
from mil.tables import by_slide
from mil.version import __version__

CALIBRATION = {"brier": "Brier score", "calibration_slope": "Slope", "calibration_intercept": "Intercept", "ece": "ECE"}
NOT_FOR = (
    "Not for decisions about patients. The model was trained and judged on the patients below, by one pipeline, and no regulator has seen it. "
    "Not for other tissue, stains, outcomes or populations than these without an evaluation there."
)


def model_card(results: Results, experiment: str) -> str:
    """The card of an experiment's models, each number from the run's tables."""
    spec = results.experiments[experiment]
    title = f"{strategy_name(spec.strategy.name)} ({input_name(spec)})"
    parts = [
        _front_matter(experiment, spec.endpoint),
        f"# {title}",
        f"Cohort {results.config.cohort}, experiment `{experiment}`, endpoint {spec.endpoint}, mil {__version__}.",
        *([f"**{warning}**"] if (warning := leak_warning(results)) else []),
        "## Model",
        "\n".join(_model(results, experiment)),
        "## Intended use",
        "Research on the question of this study: to repeat it, to compare with it, to find what the model looks at.",
        NOT_FOR,
        "## Data",
        _table_or_reason(lambda: _data(results, experiment)),
        "## Performance",
        _table_or_reason(lambda: _performance(results, experiment)),
        "## Subgroups",
        "AUROC of each patient's mean score over the models that did not see them; all sites together, not within folds.",
        _table_or_reason(lambda: _subgroups(results, experiment)),
        "## Calibration",
        _table_or_reason(lambda: _calibration(results, experiment)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits(_about(results, experiment))),
    ]
    return "\n\n".join(parts) + "\n"


def _about(results: Results, experiment: str) -> Results:
    """The same results with `experiment` as the main one, so that limits are of its endpoint and patients."""
    figures = results.config.figures.model_copy(update={"main": experiment})
    return Results(results.folder, results.config.model_copy(update={"figures": figures}))


def _front_matter(experiment: str, endpoint: str) -> str:
    """Metadata in YAML as model hubs read it; JSON strings are YAML strings."""
    values = {
        "library_name": "milpath",
        "model_name": experiment,
        "tags": ["pathology", "multiple-instance-learning", endpoint],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _model(results: Results, experiment: str) -> Iterator[str]:
    spec = results.experiments[experiment]
    encoder = results.config.encoders.get(spec.encoder)
    entry = ENCODERS[encoder.name] if encoder is not None and encoder.name in ENCODERS else None
    if encoder is not None:
        licence = f", code {entry.licence}, weights {entry.weights_licence}" if entry is not None else ""
        yield f"- Encoder: {encoder.name}, frozen{licence}"
    yield f"- Head: {model_name(spec.model.name)}, settings `{spec.model.to_json()}`"
    yield f"- Strategy: {strategy_name(spec.strategy.name)}, settings `{spec.strategy.to_json()}`"
    yield f"- Training: `{spec.training.to_json()}`"
    try:
        models = results.models(experiment)
    except Absent:
        return
    yield f"- {len(models)} models, one for each fold, repeat and set of training sites; weights in `runs/{experiment}/`"
    yield f"- Scores of new patients: `mil predict runs/{experiment} --bags TABLE --sites FOLDER --out FILE`"


def _data(results: Results, experiment: str) -> pd.DataFrame:
    bags, kind = results.bags(results.experiments[experiment].endpoint), results.kind_of(experiment)
    rows = []
    for site in results.sites:
        part = bags[bags["site"] == site]
        role, slides = results.config.slides.roles[site], len(by_slide(part))
        row = {"Site": site, "Role": role, "Patients": len(part), "Slides": slides}
        if kind.two_classes:
            row["Positive"] = int(part["label"].sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _performance(results: Results, experiment: str) -> pd.DataFrame:
    table = primary(results.metrics(experiment)).dropna(subset=["value"])
    title = results.kind_of(experiment).primary.title
    return pd.DataFrame(
        {
            "Trained on": table["trained_on"],
            "Scored on": table["site"],
            "Split": table["split"].str.replace("_", "-"),
            "Patients": table["patients"],
            title: [with_interval(row.value, row.low, row.high) for row in table.itertuples()],
        }
    )


def _subgroups(results: Results, experiment: str) -> pd.DataFrame:
    """AUROC by subgroup of patients whom no model that scores them was trained on."""
    table = results.clinical("subgroups")
    table = table[table["experiment"] == experiment]
    if table.empty:
        raise Absent("no subgroup is named in metrics.subgroups, or the endpoint has no two classes")
    return pd.DataFrame(
        {
            "Variable": table["variable"],
            "Level": table["level"],
            "Patients": table["patients"],
            "Positive": table["positives"],
            "AUROC": [with_interval(row.auroc, row.low, row.high) for row in table.itertuples()],
        }
    )


def _calibration(results: Results, experiment: str) -> pd.DataFrame:
    table = results.metrics(experiment)
    table = table[table["metric"].isin(CALIBRATION) & (table["split"] != "transfer")].dropna(subset=["value"])
    if table.empty:
        raise Absent("no measure of calibration is defined for this endpoint")
    text = table.assign(cell=[with_interval(row.value, row.low, row.high) for row in table.itertuples()])
    wide = text.pivot_table(index=["trained_on", "site"], columns="metric", values="cell", aggfunc="first", sort=False)
    wide = wide[[name for name in CALIBRATION if name in wide]].rename(columns=CALIBRATION)
    return wide.reset_index().rename(columns={"trained_on": "Trained on", "site": "Scored on"}).fillna("–")


def _table_or_reason(make: Callable[[], pd.DataFrame]) -> str:
    try:
        return _markdown(make())
    except Absent as reason:
        return f"Not here: {reason}."


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
