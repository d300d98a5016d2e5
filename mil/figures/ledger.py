"""The run's ledger: what each site sent in each round, by digest, and whether the chain of entries holds."""

import re

import pandas as pd

from mil.config import FiguresSpec
from mil.errors import CorruptFile
from mil.figures.arms import input_name
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import strategy_name
from mil.figures.table import table_picture
from mil.results.results import Absent, Results
from mil.training.ledger import read

ROUNDS = 6
MODEL = re.compile(r"(?P<sites>.+)/repeat(?P<repeat>\d+)/fold(?P<fold>\d+)")
DIGITS = 10
MOST_ROWS = 24


@figure("Ledger of the run", needs=("runs",), endpoints=ANY, chapter="training", number="ED8")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """The first rounds of the main experiment's first final model; the caption counts the rest."""
    name = results.main
    entries = pd.DataFrame(results.ledger(name))
    if entries.empty:
        raise Absent(f"the ledger of {name} has no entry")
    try:
        lines, verdict = (
            len(read(results.folder / "runs" / name / "ledger.jsonl")),
            "every entry follows from the one before",
        )
    except CorruptFile as error:
        lines, verdict = len(entries), f"THE CHAIN IS BROKEN: {error}"
    final = entries[entries["phase"] == "refit"] if "phase" in entries.columns else entries
    final = final if len(final) else entries
    first = final[final["model"] == final["model"].iloc[0]]
    rounds = max(1, min(ROUNDS, MOST_ROWS // max(first["site"].nunique(), 1), int(first["round"].max())))
    shown = first[first["round"] <= rounds]
    table = pd.DataFrame(
        {
            "Round": shown["round"].astype(str),
            "Site": shown["site"],
            "Patients": shown["patients"].astype(str),
            "Update sent": shown["update_sha256"].str[:DIGITS],
            "Global model": shown["global_sha256"].str[:DIGITS],
            "Entry": shown["hash"].str[:DIGITS],
            "Entry before": shown["prev_hash"].str[:DIGITS],
        }
    ).reset_index(drop=True)
    sent = entries.groupby("site").size()
    main = results.experiments[name]
    return Drawn(
        figure=table_picture(table),
        data=table,
        is_table=True,
        n=f"{lines:,} entries, {entries['model'].nunique()} models",
        caption=(
            f"Ledger of {strategy_name(main.strategy.name)}, {input_name(main)}: the first {rounds} of "
            f"{int(first['round'].max())} rounds of {_model(results, str(first['model'].iloc[0]))} (first {DIGITS} hex digits of SHA-256). Checked when drawn: "
            f"{verdict}. Updates recorded: {', '.join(f'{site} {number:,}' for site, number in sent.items())}. An entry holds "
            "counts and digests, no patient and no score."
        ),
    )


def _model(results: Results, name: str) -> str:
    """`A+B/repeat0/fold1` in words."""
    match = MODEL.match(name)
    if match is None:
        return f"model {name}"
    sites = match["sites"].split("+")
    said = "all training sites" if sites == results.training_sites and len(sites) > 1 else " and ".join(sites)
    return f"the model of {said}, repeat {int(match['repeat']) + 1}, fold {int(match['fold']) + 1}"
