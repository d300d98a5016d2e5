"""Statistics of all sites' patients from a few numbers a site, and which counts may be shown at all.

moments: merged as Chan, Golub and LeVeque 1979 do, equal to those of the pooled rows. AUROC: each site's own with DeLong's
variance, combined over sites; no score leaves a site, so pairs of patients of two sites are not compared. Log-rank:
stratified by site, from observed minus expected and its variance. Counts: small cells are withheld, and others with them,
until no withheld cell can be worked out from what is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from mil.statistics.intervals import normal_quantile


@dataclass(frozen=True)
class Summary:
    """Of a column: how many are known, their mean, and the sum of squared deviations from it."""

    count: float
    mean: float
    squares: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Summary":
        """Of a site's own values; NaN is not known."""
        known = np.asarray(values, np.float64)
        known = known[np.isfinite(known)]
        if not len(known):
            return cls(0.0, 0.0, 0.0)
        return cls(float(len(known)), float(known.mean()), float(((known - known.mean()) ** 2).sum()))

    @property
    def variance(self) -> float:
        """Of the sample (n - 1); NaN for fewer than two."""
        return self.squares / (self.count - 1) if self.count > 1 else float("nan")


def merged(summaries: Sequence[Summary]) -> Summary:
    """The summary of all values together."""
    count = sum(summary.count for summary in summaries)
    if not count:
        return Summary(0.0, 0.0, 0.0)
    mean = sum(summary.count * summary.mean for summary in summaries) / count
    squares = sum(summary.squares + summary.count * (summary.mean - mean) ** 2 for summary in summaries)
    return Summary(count, mean, squares)


@dataclass(frozen=True)
class Combined:
    """An AUROC over sites with its interval; `how` says what was averaged."""

    auroc: float
    low: float
    high: float
    how: str


def auroc_of_sums(patients: float, weighted: float, squared: float, confidence: float = 0.95) -> Combined:
    """Mean of the sites' AUROCs by their patients, with the interval that their variances give it.

    From sums over sites: patients, AUROCs by patients, variances by the patients' squares. It is the chance that a positive scores
    above a negative of the same site: scores of two sites are never compared.
    """
    mean = weighted / patients
    half = float(normal_quantile(confidence) * np.sqrt(squared) / patients)
    return Combined(mean, max(0.0, mean - half), min(1.0, mean + half), "mean over sites, by patients")


@dataclass(frozen=True)
class LogRank:
    """What a site tells of two groups' survival: events of the first group beyond the expected ones, and the variance."""

    difference: float
    variance: float

    @classmethod
    def of(cls, times: np.ndarray, events: np.ndarray, group: np.ndarray) -> "LogRank":
        """Hypergeometric at every event time (Mantel 1966); `group` is true for the first group."""
        times, events, group = np.asarray(times, np.float64), np.asarray(events, bool), np.asarray(group, bool)
        difference = variance = 0.0
        for time in np.unique(times[events]):
            risk = times >= time
            now = events & (times == time)
            n, first, died = risk.sum(), (risk & group).sum(), now.sum()
            difference += (now & group).sum() - died * first / n
            if n > 1:
                variance += died * (first / n) * (1 - first / n) * (n - died) / (n - 1)
        return cls(float(difference), float(variance))


def stratified_logrank(sites: Sequence[LogRank]) -> tuple[float, float]:
    """Chi-square with one degree of freedom and its p value, each site a stratum; NaN where nothing can be told."""
    variance = sum(site.variance for site in sites)
    if not variance:
        return float("nan"), float("nan")
    statistic = sum(site.difference for site in sites) ** 2 / variance
    return statistic, float(scipy.stats.chi2.sf(statistic, 1))


@dataclass(frozen=True)
class Shown:
    """A table of counts as it may be shown: NaN where a number is withheld."""

    cells: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    total: float


def suppress(counts: np.ndarray, threshold: int) -> Shown:
    """Counts (rows, columns) with their totals, without those from 1 to `threshold` - 1 and without what gives them away.

    A total below the threshold is withheld too. Further cells, the smallest first, are withheld until from everything
    that is shown every withheld cell could still be any of at least `threshold` numbers; where all cells do not suffice,
    totals follow.
    """
    counts = np.asarray(counts, np.int64)
    hidden = (counts > 0) & (counts < threshold)
    rows, columns = counts.sum(1), counts.sum(0)
    lines = [(rows > 0) & (rows < threshold), (columns > 0) & (columns < threshold)]
    whole = not 0 < counts.sum() < threshold
    small = hidden.copy()
    for _ in range(counts.size + counts.shape[0] + counts.shape[1] + 1):
        known = _Known(counts, hidden, ~lines[0], ~lines[1], whole)
        open_cell = next((cell for cell in np.argwhere(small) if not known.is_safe(tuple(cell), threshold)), None)
        if open_cell is None:
            break
        if not _hide_another(counts, hidden, lines, tuple(open_cell)):
            whole = False
    shown = np.where(hidden, np.nan, counts)
    parts = [np.where(line, np.nan, total) for line, total in zip(lines, (rows, columns), strict=True)]
    return Shown(shown, parts[0], parts[1], float(counts.sum()) if whole else float("nan"))


@dataclass(frozen=True)
class _Known:
    """What a reader of the table knows: the cells and totals that are shown, and that counts are not negative."""

    counts: np.ndarray
    hidden: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    whole: bool

    def is_safe(self, cell: tuple[int, ...], threshold: int) -> bool:
        """Whether a hidden cell could still be any of `threshold` numbers, as far as linear programming can tell."""
        cells = np.argwhere(self.hidden)
        equations, sides = [], []
        for axis, shown in ((0, self.rows), (1, self.columns)):
            for line in np.flatnonzero(shown):
                on_line = cells[:, axis] == line
                equations.append(on_line.astype(float))
                sides.append(self.counts[tuple(cells[on_line].T)].sum())
        if self.whole:
            equations.append(np.ones(len(cells)))
            sides.append(self.counts[self.hidden].sum())
        aim = (cells == cell).all(1).astype(float)
        ends = []
        for sign in (1, -1):
            solution = scipy.optimize.linprog(
                sign * aim, A_eq=equations or None, b_eq=sides or None, bounds=(0, None), method="highs"
            )
            if solution.status == 3:  # unbounded: nothing is known of it
                return True
            ends.append(sign * solution.fun)
        return ends[1] - ends[0] >= threshold - 1 - 1e-9


def _hide_another(counts: np.ndarray, hidden: np.ndarray, lines: list[np.ndarray], at_risk: tuple[int, ...]) -> bool:
    """Hide the smallest cell beside `at_risk`, else anywhere, else its total; False when there is nothing left to hide."""
    row, column = at_risk
    beside = np.zeros_like(hidden)
    beside[row, :] = beside[:, column] = True
    for where in (beside & ~hidden & (counts > 0), ~hidden & (counts > 0), beside & ~hidden, ~hidden):
        if where.any():
            cell = min(map(tuple, np.argwhere(where)), key=lambda index: (counts[index], index))
            hidden[cell] = True
            return True
    for line, number in zip(lines, at_risk, strict=True):
        if not line[number]:
            line[number] = True
            return True
    return False
