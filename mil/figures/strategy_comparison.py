"""Strategies, rounds and local work: what each reaches at training and external sites."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.endpoints.kinds import Measure
from mil.figures.arms import Arm, arm, input_name
from mil.figures.layout import capital, name_rows
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, chance_line, light_grid, new_figure
from mil.metrics.score import primary
from mil.results.results import Absent, Results
from mil.statistics.arms import EXTERNAL_SITES, TRAINING_SITES


@figure(
    "Strategies, rounds and local work", needs=("metrics", "rounds"), endpoints=ANY, chapter="performance", number="ED2"
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """AUROC of every arm of the family at training and external sites; beside it, the rounds that each used."""
    family = results.family()
    if len({one.strategy.name for one in family.values()}) < 2 and len(family) < 2:
        raise Absent("the run has one strategy only for the main encoder and model")
    metrics = primary(results.metrics(*family))
    groups = [group for group in (TRAINING_SITES, EXTERNAL_SITES) if group in set(metrics["site"])]
    metrics = metrics[metrics["site"].isin(groups) & (metrics["split"] != "transfer")].dropna(subset=["value"])
    pairs = metrics[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    arms = sorted((arm(results, name, on) for name, on in pairs), key=lambda one: one.order)
    rounds = _rounds(results, family)
    picture = new_figure(DOUBLE_MM, 20 + 6 * len(arms))
    panels = picture.subplots(1, len(groups) + 1, sharey=True, width_ratios=[1.3] * len(groups) + [1])
    for axes, group in zip(panels, groups, strict=False):
        _panel(axes, metrics[metrics["site"] == group], arms, results.kind.primary)
        axes.set_title(capital(group))
    _draw_rounds(panels[-1], rounds, arms)
    name_rows(panels[0], [_label(results, one) for one in arms])
    panels[0].set_ylim(len(arms) - 0.4, -0.6)
    main = results.experiments[results.main]
    data = pd.concat([metrics.assign(kind=results.kind.primary.name), rounds.assign(kind="rounds")], ignore_index=True)
    return Drawn(
        figure=picture,
        data=data,
        n=", ".join(f"{group} {int(metrics.loc[metrics['site'] == group, 'patients'].max())}" for group in groups),
        caption=(
            f"Strategies on {input_name(main)} for {main.endpoint}: {results.kind.primary.title} within sites with "
            f"{results.config.metrics.confidence:.0%} intervals ({results.kind.how}), and the number of rounds that the inner folds chose for each fold's model (dots; for one-site and pooled models "
            "a round is one pass of local work). Differences with their tests are in the table of comparisons."
        ),
    )


def _rounds(results: Results, family: dict) -> pd.DataFrame:
    parts = []
    for name in family:
        try:
            parts.append(results.models(name)[["trained_on", "repeat", "fold", "rounds"]].assign(experiment=name))
        except Absent:
            continue
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["experiment", "trained_on", "rounds"])
    )


def _label(results: Results, one: Arm) -> str:
    """The arm, with its local epochs and most rounds where the family differs in them."""
    settings = {(spec.training.rounds, spec.training.local_epochs) for spec in results.family().values()}
    if len(settings) < 2:
        return one.name
    training = results.experiments[one.experiment].training
    return f"{one.name}\n{training.rounds} × {training.local_epochs}"


def _panel(axes: Axes, table: pd.DataFrame, arms: list[Arm], measure: Measure) -> None:
    light_grid(axes, "x")
    chance_line(axes, vertical=True, at=measure.chance)
    by_arm = table.set_index(["experiment", "trained_on"])
    for place, one in enumerate(arms):
        if (one.experiment, one.trained_on) in by_arm.index:
            row = by_arm.loc[(one.experiment, one.trained_on)]
            axes.plot([row["low"], row["high"]], [place, place], color=one.colour, linewidth=1.4)
            axes.plot(row["value"], place, "o", color=one.colour, markersize=4.5)
            axes.text(row["value"], place - 0.2, f"{row['value']:.2f}", ha="center", va="bottom", fontsize=6)
    low = min((measure.chance or 0.0) - 0.1, float(table["low"].min()) - 0.02)
    axes.set(xlim=(low, 1.02), xlabel=f"{measure.title} within sites")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_rounds(axes: Axes, rounds: pd.DataFrame, arms: list[Arm]) -> None:
    light_grid(axes, "x")
    for place, one in enumerate(arms):
        mine = rounds[(rounds["experiment"] == one.experiment) & (rounds["trained_on"] == one.trained_on)]["rounds"]
        counts = mine.value_counts()
        axes.scatter(
            counts.index, [place] * len(counts), s=8 * counts.to_numpy(), color=one.colour, alpha=0.75, linewidths=0
        )
    axes.set(xlabel="Rounds chosen")
    axes.set_xlim(0, float(rounds["rounds"].max() if len(rounds) else 1) * 1.08 + 0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Rounds")
