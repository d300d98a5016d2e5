"""What the strategies send: of a round, of a final model and of the whole run, beside the size of the features themselves."""

from contextlib import suppress

import pandas as pd

from mil.config import FiguresSpec
from mil.figures.arms import arm, input_name
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import MIDDLE_MM, SOFT, light_grid, new_figure
from mil.results.results import Absent, Results
from mil.tables import by_slide

ROW_MM, HEAD_MM = 6.0, 26.0
MB = 1e6
SIZES = {
    "round_mb": ("o", "a round"),
    "model_mb": ("s", "a final model"),
    "run_mb": ("D", "the run, selection included"),
}


@figure("Communication by strategy", needs=("runs", "bags", "census"), endpoints=ANY, chapter="training", number="ED2")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """A row a federated strategy; markers on a scale of MB, and a line where uploading the features would be."""
    rows = []
    for name in results.family():
        with suppress(Absent):
            if sent := traffic(results.ledger(name)):
                rows.append({"experiment": name, "strategy": results.experiments[name].strategy.name, **sent})
    if not rows:
        raise Absent(
            "no ledger of the main model's family states bytes: nothing was exchanged, or it was written before they were"
        )
    table = pd.DataFrame(rows).assign(features_mb=features_mb(results))
    arms = sorted((arm(results, name, "") for name in table["experiment"]), key=lambda row_arm: row_arm.order)
    picture = new_figure(MIDDLE_MM, HEAD_MM + ROW_MM * len(arms))
    axes = picture.subplots()
    light_grid(axes, "x")
    by_name = table.set_index("experiment")
    for height, row_arm in enumerate(arms):
        for kind, (marker, words) in SIZES.items():
            value, face = by_name.loc[row_arm.experiment, kind], "white" if kind == "round_mb" else row_arm.colour
            label = words if not height else None
            axes.plot(value, height, marker, color=row_arm.colour, markerfacecolor=face, markersize=4.5, label=label)
            axes.text(value, height - 0.2, _three_digits(value), ha="center", va="bottom", fontsize=6)
    features = float(table["features_mb"].iloc[0])
    if features == features:
        axes.axvline(features, color=SOFT, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(
            features, -1.0, f"features\n{_three_digits(features)}", ha="center", va="bottom", fontsize=6.3, color=SOFT
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set(xlabel="MB, both ways, all training sites", ylim=(len(arms) - 0.4, -0.9))
    axes.set_yticks(range(len(arms)), [row_arm.name for row_arm in arms])
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=6.3)
    main = results.experiments[results.main]
    return Drawn(
        figure=picture,
        data=table,
        n=f"{len(results.training_sites)} training sites, {int(table['models'].max())} final models",
        caption=(
            f"Bytes of model weights (SCAFFOLD: and control variates; FedPer: of the shared layers) that crossed between server and sites, both ways, "
            f"from the ledgers of the runs on {input_name(main)}: of one model in one round, of one final model (median) in all its rounds, and of the "
            "whole run with its inner folds and search. Line: the features of the training sites' patients, if these were uploaded once instead."
        ),
    )


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def traffic(entries: list[dict]) -> dict[str, float]:
    """A ledger's entries -> MB of one model in a round, of one final model, of everything; nothing where none crossed."""
    table = pd.DataFrame(entries)
    if "bytes_sent" not in table.columns:
        return {}
    table = table.assign(mb=(table["bytes_sent"] + table["bytes_received"]) / MB)
    final = table[table["phase"] == "refit"]
    models = final.groupby("model")
    return {
        "site_down_mb": float(final["bytes_received"].median() / MB),
        "site_up_mb": float(final["bytes_sent"].median() / MB),
        "round_mb": float(final.groupby(["model", "round"])["mb"].sum().median()),
        "rounds": float(models["round"].max().median()),
        "model_mb": float(models["mb"].sum().median()),
        "models": models.ngroups,
        "run_mb": float(table["mb"].sum()),
    }


def features_mb(results: Results) -> float:
    """Size of the training sites' features, tiles x width x bytes a number; not a number where none is on this machine.

    Not of their files: HDF5 rounds small ones up to a chunk.
    """
    encoder = results.experiments[results.main].encoder
    bags = results.bags(results.endpoint)
    used = by_slide(bags[bags["role"] == "train"])
    if used.empty:
        return float("nan")
    try:
        census = results.census()
        _, features = results.files.features(used["site"].iloc[0], encoder, used["slide_id"].iloc[0])
    except Absent:
        return float("nan")
    tiles = census.loc[census["slide_id"].isin(used["slide_id"]), "num_tiles"].sum()
    return float(tiles) * features.shape[1] * features.dtype.itemsize / MB
