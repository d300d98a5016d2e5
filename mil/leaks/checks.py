"""Tables -> findings: ways in which the label, or a patient who is to be judged, could have got into training."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb

import numpy as np
import pandas as pd
import scipy
from scipy.spatial.distance import pdist, squareform
from scipy.special import ndtr

from mil.bags.table import outer_folds
from mil.statistics.delong import both_classes
from mil.statistics.multiplicity import holm
from mil.statistics.ranking import midranks
from mil.tables import by_slide

ENCODES = 0.97  # an input that ranks patients this well knows the label
MADE_FROM_LABEL = "it was likely made from the label, leave it out"
FEW = 5  # patients of a class below which innocent inputs are not judged, and a word is left out
NOT_JUDGED = "not judged"
KNOWS_TOO_MUCH = 0.01  # adjusted p below which what is found is not chance
DOUBTFUL = 0.2  # adjusted p below which an input that ranks patients almost perfectly is worth a look
WORDS = re.compile(r"[A-Za-z]+|\d+")
MOST_WORDS = 500
SHARED = 0.2  # of the smaller bag
NEAR = 0.05  # of the usual distance to a nearest neighbour
AT_ONCE = 500  # bags that are compared with all others in one step


@dataclass(frozen=True)
class Finding:
    """One check of one subject: `state` is ok, not judged, suspect (look at it) or leak (a fault), with the reason and the way out."""

    check: str
    subject: str
    state: str
    reason: str = ""
    value: float = np.nan
    p: float = np.nan


def findings_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """check, subject, state, reason, value, p; leaks first, then what is suspect, then what could not be judged."""
    table = pd.DataFrame(
        [asdict(finding) for finding in findings], columns=["check", "subject", "state", "reason", "value", "p"]
    )
    order = table["state"].map({"leak": 0, "suspect": 1, NOT_JUDGED: 2, "ok": 3})
    return table.iloc[order.argsort(kind="stable")].drop_duplicates().reset_index(drop=True)


def findings_of(table: pd.DataFrame) -> list[Finding]:
    """The findings of such a table, as it was read again."""
    return [Finding(*row) for row in table.fillna({"reason": ""}).itertuples(index=False)]


def named(leaks: pd.DataFrame) -> str:
    """All leaks of a table in one line: each check with its subjects and the reason of its first."""
    return "; ".join(
        f"{check}: {', '.join(part['subject'].astype(str))} {part['reason'].iloc[0]}"
        for check, part in leaks.groupby("check", sort=False)
    )


def check_bags(bags: pd.DataFrame, census: pd.DataFrame | None = None) -> list[Finding]:
    """No patient or slide twice, no fold at external sites, and nobody of an outer fold in its inner folds.

    With the sites' censuses also: every usable slide of a patient is in the bag, whatever the order of the slide table.
    """
    findings = []
    for patient in bags[bags["patient_id"].duplicated()]["patient_id"].unique():
        reason = "stands in two rows of the bag table, so it can be in two folds; merge them"
        findings.append(Finding("patients", str(patient), "leak", reason))
    slides = by_slide(bags)["slide_id"]
    for slide in slides[slides.duplicated()].unique():
        findings.append(Finding("slides", str(slide), "leak", "belongs to two patients; correct the slide sheet"))
    for repeat, fold in outer_folds(bags):
        outer = pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce")
        inner = pd.to_numeric(bags[f"repeat{repeat}_fold{fold}_inner"], errors="coerce")
        wrong = bags[((outer == fold) | (bags["role"] == "external")) & inner.notna()]
        reason = f"is judged in repeat {repeat}, fold {fold}, and stands in its inner folds"
        findings += [Finding("folds", str(patient), "leak", reason) for patient in wrong["patient_id"]]
    if census is not None:
        usable = census[(census["state"] == "ok") & census["patient_id"].isin(set(bags["patient_id"]))]
        for row in usable[~usable["slide_id"].isin(slides)].itertuples():
            reason = f"is usable and not in the bag of patient {row.patient_id}; run `mil bag` again"
            findings.append(Finding("slides", str(row.slide_id), "suspect", reason))
    return findings or [Finding("bags", f"{len(bags)} patients", "ok")]


def check_duplicate_slides(slides: pd.DataFrame) -> list[Finding]:
    """No two patients share a slide file; `slides` has slide_id, patient_id, fingerprint."""
    known = slides[slides["fingerprint"].fillna("").astype(str) != ""]
    findings = []
    for _, same in known.groupby("fingerprint"):
        if same["patient_id"].nunique() > 1:
            names = ", ".join(f"{row.slide_id} of {row.patient_id}" for row in same.itertuples())
            findings.append(
                Finding("duplicate slides", names, "leak", "are one file under several patients; keep the right one")
            )
    return findings or [Finding("duplicate slides", f"{len(known)} slide files that could be read", "ok")]


def check_inputs(
    check: str, inputs: pd.DataFrame, labels: pd.Series, sites: pd.Series | None = None, innocent: bool = False
) -> list[Finding]:
    """Each column of `inputs` (by patient_id) against the labels: one that ranks patients almost perfectly encodes them.

    Judged over everybody and, with `sites` (by patient_id), at each site alone, since a leak may be one hospital's only.
    p values are the rank-sum test's with Holm's correction over columns and sites, so that many columns and few patients
    raise no alarm. Where even a perfect ranking would be chance (Tarone 1990, Biometrics 46:515) nothing is tested, and
    said so. `innocent` inputs (file sizes, names, number of tiles) should know nothing at all: what they know beyond
    chance within the sites (sites may differ in size and in response) is suspect.
    """
    strata = pd.Series("", index=labels.index) if sites is None else sites.reindex(labels.index)
    inputs = inputs.reindex(labels.index)
    inputs = inputs.loc[:, inputs.nunique() > 1]
    judged, few = _judged(check, inputs, labels, strata)
    adjusted = holm(np.array([p for *_, p in judged]))
    known: dict[str, Finding] = {}
    for (column, where, area, _), p in zip(judged, adjusted, strict=True):
        if max(area, 1 - area) >= ENCODES and p < DOUBTFUL and (column not in known or p < known[column].p):
            known[column] = _encoding(check, column, where, area, p)
    accused = list(known.values())
    if innocent:
        accused += _too_much(
            check, inputs.drop(columns=[name for name in inputs if str(name) in known]), labels, strata
        )
    if not accused and judged:
        accused = [Finding(check, f"{len(inputs.columns)} inputs", "ok")]
    return accused + few


def _encoding(check: str, column: str, where: str, area: float, p: float) -> Finding:
    at = f" at {where}" if where else ""
    reason = f"ranks patients by label{at} with an AUROC of {max(area, 1 - area):.2f}; "
    if p < KNOWS_TOO_MUCH:
        return Finding(check, column, "leak", f"{reason}{MADE_FROM_LABEL}", area, float(p))
    return Finding(check, column, "suspect", f"{reason}with so few patients that may be chance", area, float(p))


def _judged(
    check: str, inputs: pd.DataFrame, labels: pd.Series, sites: pd.Series
) -> tuple[list[tuple[str, str, float, float]], list[Finding]]:
    """Column, where ('' is everywhere), AUROC and p; and the sites whose patients are too few for that many columns."""
    wheres = {"": np.ones(len(labels), bool)}
    wheres |= {where: (sites == where).to_numpy() for where in sorted(sites.unique()) if sites.nunique() > 1}
    least = {where: _least_p(*_classes(labels[rows])) for where, rows in wheres.items()}
    judged, few = [], []
    for where in sorted(wheres, key=lambda site: least[site]):
        rows = wheres[where]
        known, truth = inputs[rows].loc[:, lambda table: table.nunique() > 1], labels[rows]
        if least[where] * (len(judged) + len(known.columns)) < DOUBTFUL:
            judged += [(str(column), where, *_ranked(known[column], truth)) for column in known]
        elif len(known.columns):
            positives, negatives = _classes(truth)
            reason = f"has {positives} positive and {negatives} negative patients: among {len(known.columns)} inputs"
            few.append(
                Finding(check, where or "all sites", NOT_JUDGED, f"{reason} a leak could not be told from chance")
            )
    return judged, few


def _ranked(values: pd.Series, labels: pd.Series) -> tuple[float, float]:
    """AUROC and p of one column, of those patients who have a value."""
    known = values.notna()
    truth, numbers = labels[known].to_numpy(int), values[known].to_numpy(float)
    if not both_classes(truth):
        return 0.5, 1.0
    excess, variance, pairs = _rank_sum(truth, numbers)
    return 0.5 + excess / pairs, max(_two_sided(excess, variance), _least_p(*_classes(labels[known])))


def _classes(labels: pd.Series) -> tuple[int, int]:
    return int((labels == 1).sum()), int((labels == 0).sum())


def _least_p(positives: int, negatives: int) -> float:
    """Of the exact two-sided rank-sum test, for a perfect ranking; the normal approximation is smaller with few patients."""
    return 2 / comb(positives + negatives, positives)


def _too_much(check: str, inputs: pd.DataFrame, labels: pd.Series, sites: pd.Series) -> list[Finding]:
    """What innocent columns know of the label within sites: the rank-sum test stratified by site (van Elteren 1960)."""
    judged = []
    for column in inputs:
        values = inputs[column].reindex(labels.index)
        parts = []
        for where in sorted(sites.unique()):
            rows = values.notna() & (sites == where)
            truth = labels[rows].to_numpy(int)
            if both_classes(truth):
                parts.append(_rank_sum(truth, values[rows].to_numpy(float)))
        excess, variance, pairs = np.sum(parts, axis=0) if parts else (0.0, 0.0, 0.0)
        if variance > 0 and min(labels.sum(), (1 - labels).sum()) >= FEW:
            judged.append((str(column), 0.5 + excess / pairs, _two_sided(excess, variance)))
    adjusted = holm(np.array([p for _, _, p in judged]))
    reason = "should know nothing of the label and does; find out how positives and negatives were collected"
    return [
        Finding(check, column, "suspect", reason, float(area), float(p))
        for (column, area, _), p in zip(judged, adjusted, strict=True)
        if p < KNOWS_TOO_MUCH
    ]


def _rank_sum(labels: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Pairs in the right order less half of all, its variance if labels are exchangeable (ties allowed), and all pairs."""
    ranks, n, m = midranks(values), len(labels), int(labels.sum())
    excess = float(ranks[labels == 1].sum() - m * (n + 1) / 2)
    return excess, m * (n - m) * float(ranks.var(ddof=1)) / n if n > 1 else 0.0, float(m * (n - m))


def _two_sided(excess: float, variance: float) -> float:
    return float(2 * ndtr(-abs(excess) / np.sqrt(variance))) if variance > 0 else 1.0


def administrative_inputs(slides: pd.DataFrame, bags: pd.DataFrame) -> pd.DataFrame:
    """By patient: number of tiles and slides, bytes, size, mpp, row in the sheet; what should tell nothing of the label.

    `slides` has a row a slide with patient_id and any of num_tiles, bytes, width, height, mpp.
    """
    numbered = slides.reset_index(drop=True).assign(row=np.arange(len(slides), dtype=float))
    columns = [name for name in ("num_tiles", "bytes", "width", "height", "mpp", "row") if name in numbered.columns]
    numbers = numbered[columns].apply(pd.to_numeric, errors="coerce").groupby(numbered["patient_id"]).mean()
    numbers["slides"] = numbered.groupby("patient_id").size()
    digits = pd.to_numeric(bags["patient_id"].astype(str).str.extract(r"(\d+)\D*$", expand=False), errors="coerce")
    numbers["number in patient_id"] = pd.Series(digits.to_numpy(), index=bags["patient_id"].to_numpy())
    return numbers.reindex(bags["patient_id"]).loc[:, lambda table: table.nunique() > 1]


def text_inputs(texts: Mapping[str, str]) -> pd.DataFrame:
    """By patient: which words and numbers are in a text (file names, ids, remarks), its length; 0/1 columns of `text_inputs`.

    Words that fewer than `FEW` patients have, or lack, are left out; of words in the same patients one stands for all.
    """
    words = {patient: set(WORDS.findall(text.lower())) for patient, text in texts.items()}
    counts = pd.Series([word for tokens in words.values() for word in tokens], dtype=object).value_counts()
    chosen = counts[(counts >= FEW) & (counts <= len(words) - FEW)].index[:MOST_WORDS]
    columns: dict[str, list[float]] = {"length": [float(len(text)) for text in texts.values()]}
    columns |= {f"'{word}'": [float(word in tokens) for tokens in words.values()] for word in sorted(chosen)}
    table = pd.DataFrame(columns, index=pd.Index(list(words)))
    return table.loc[:, ~table.T.duplicated() & (table.nunique() > 1)]


def check_copies(check: str, bags: Iterable[tuple[str, np.ndarray]]) -> list[Finding]:
    """No two patients hold the same tiles, or almost the same bag; `bags` are patients with features (tiles, width).

    Same tiles: a fifth of the smaller bag's different rows stand in the other, bit for bit. Almost the same: mean and
    deviation of the features lie twenty times nearer than those of the median patient and their nearest neighbour, as for
    one slide that was scanned or saved twice.
    """
    patients, rows, summaries = [], [], []
    for patient, bag in bags:
        patients.append(patient)
        rows.append(np.unique([hash(row.tobytes()) for row in np.ascontiguousarray(bag)]))
        values = bag.astype(np.float64)
        summaries.append(np.concatenate([values.mean(axis=0), values.std(axis=0)]))
    if len(patients) < 3:
        return [Finding(check, f"{len(patients)} bags", NOT_JUDGED, "fewer than 3 patients cannot be compared")]
    findings = {}
    for a, b, number in _common(rows):
        share = number / min(len(rows[a]), len(rows[b]))
        reason = f"share {number} tiles bit for bit; one slide stands under two patients, keep the right one"
        findings[a, b] = Finding(check, f"{patients[a]} and {patients[b]}", "leak", reason, share)
    for a, b, ratio in _near(np.stack(summaries)):
        reason = "have almost the same features; if that is one slide scanned or saved twice, keep one"
        findings.setdefault((a, b), Finding(check, f"{patients[a]} and {patients[b]}", "suspect", reason, ratio))
    return list(findings.values()) or [Finding(check, f"{len(patients)} bags", "ok")]


def _common(rows: Sequence[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Pairs of bags of which `SHARED` or more of the smaller one's rows (each bag's distinct hashes) are common, and how many."""
    sizes = np.array([len(hashes) for hashes in rows])
    kinds, kind, owners = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    several = (owners > 1)[kind]
    bag = np.repeat(np.arange(len(rows)), sizes)[several]
    held = scipy.sparse.csr_array((np.ones(len(bag), np.int32), (bag, kind[several])), (len(rows), len(kinds)))
    for start in range(0, len(rows), AT_ONCE):
        common = (held[start : start + AT_ONCE] @ held.T).tocoo()
        a, b = common.row + start, common.col
        leaks = (a < b) & (common.data / np.minimum(sizes[a], sizes[b]) >= SHARED)
        yield from sorted(zip(a[leaks].tolist(), b[leaks].tolist(), common.data[leaks].tolist(), strict=True))


def _near(summaries: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs whose distance is below `NEAR` of the median distance to a nearest neighbour, with that share."""
    from sklearn.neighbors import NearestNeighbors

    scaled = summaries - summaries.mean(axis=0)
    scaled = scaled / np.where(scaled.std(axis=0) > 0, scaled.std(axis=0), 1)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(scaled)  # in blocks, by rounded matrix products
    nearest = neighbours.kneighbors(return_distance=False)[:, 0]
    distances = np.array([pdist(scaled[[a, b]])[0] for a, b in enumerate(nearest)])
    usual = float(np.median(distances))
    close = np.flatnonzero(distances < NEAR * usual)
    between = squareform(pdist(scaled[close])) if len(close) else np.zeros((0, 0))
    for a, b in zip(*np.nonzero(np.triu(between < NEAR * usual, 1)), strict=True):
        yield int(close[a]), int(close[b]), float(between[a, b] / usual)
