"""Rows of a table of metrics or comparisons -> how their intervals and tests were made, in words for captions and findings."""

import re

import pandas as pd

from mil.endpoints.binary import FEW, FEWEST
from mil.statistics import held_out

IN_WORDS = {
    FEW: f"Newcombe, with fewer than {FEWEST} patients of a class",
    held_out.NO_VARIANCE: "Newcombe, where the estimated variance is 0",
    held_out.METHOD: "held out: pairs of patients of one fold, overlap of training sets counted",
}
"""What the column `method` says -> words for readers; other methods are named as in the table."""
MOST_SITES = 5
UNKNOWN = "these patients do not show how much the difference varies"
"""Why a difference has no test though patients are enough: its estimated variance is 0."""


def method_in_words(method: str) -> str:
    """What the column `method` of a row says, in words."""
    return IN_WORDS.get(method, method)


def with_intervals(table: pd.DataFrame, confidence: float) -> str:
    """`with 95% intervals (DeLong, logit scale)` of the rows shown, from their columns value, low and method.

    Names only methods of intervals that are there, and says so where rows with a value have none.
    """
    shown = table.reindex(columns=["value", "low", "method"]).dropna(subset="value")
    there = shown["low"].notna()
    reasons = shown.loc[~there, "method"].dropna().astype(str)
    few = bool(reasons.map(is_few).all())
    reason = "there are too few patients" if few else "the column “method” of the values says why"
    if not there.any():
        return f"without intervals ({reason})" if len(shown) else "without intervals"
    said = sorted({method_in_words(method) for method in shown.loc[there, "method"].dropna()})
    said += [f"none where {reason}"] if len(reasons) else []
    return f"with {confidence:.0%} intervals" + (f" ({'; '.join(said)})" if said else "")


def is_few(method: str) -> bool:
    """Whether the column `method` says that patients (or pairs of them) are too few for an interval or a test."""
    return method.endswith("needed")


def how_tested(table: pd.DataFrame) -> str:
    """The tests of the differences shown, and the sites where there is none, with the reason.

    From the columns difference, p, method and site.
    """
    shown = table.dropna(subset="difference")
    tested, few = shown["p"].notna(), shown["method"].astype(str).map(is_few)
    said = sorted({method_in_words(str(method)) for method in shown.loc[tested, "method"]})
    reasons = {"patients are too few": ~tested & few, UNKNOWN: ~tested & ~few}
    untested = {reason: _places(shown.loc[rows, "site"]) for reason, rows in reasons.items() if rows.any()}
    if not said:
        where = (f"{reason} ({places})" for reason, places in untested.items())
        return f"No difference is tested: {next(iter(untested)) if len(untested) == 1 else '; '.join(where)}."
    none = "".join(f" Differences without a test, since {reason}: {places}." for reason, places in untested.items())
    return f"Test{'s' if len(said) > 1 else ''}: {'; '.join(said)}.{none}"


def _places(sites: pd.Series) -> str:
    named = list(dict.fromkeys(sites.astype(str)))
    return ", ".join(named) if len(named) <= MOST_SITES else f"{len(named)} sites"


def correction(table: pd.DataFrame) -> str:
    """`Holm's correction over 7 comparisons of strategy on groups of sites`, from the column correction; '' where nothing is corrected."""
    families = [
        re.fullmatch(r"Holm, (\d+) comparisons(.*)", text) for text in sorted(set(table["correction"].dropna()))
    ]
    said = [
        f"{match[1]} comparison{'' if match[1] == '1' else 's'}{match[2]}"
        for match in families
        if match and match[1] != "0"
    ]
    return f"Holm's correction over {', '.join(said)}" if said else ""
