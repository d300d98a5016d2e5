"""A site's rows of the sheet -> shards: files that list the slides of one job, each rewritten only when a slide of it changes."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from mil.config import Config, TileSpec
from mil.slides.fingerprint import fingerprint, state_on_disk
from mil.slides.sheet import Cohort
from mil.tables import as_it_was, harmless
from mil.workflow.inputs import put, states
from mil.workflow.specs import slides_of

COLUMNS = ("slide_id", "patient_id", "site", "path", "mpp", "listed", "on_disk", "mask")
SMALL, LARGE, MANY_SLIDES = 50, 125, 4000  # slides per job; cohorts of many slides have larger ones

Row = dict[str, str]


def write_shards(config: Config, cohort: Cohort, results: Path) -> dict[str, list[int]]:
    """Write `sites/{site}/shards/{number}.csv` of every site and `inputs/shards.json`; the numbers of each site's shards.

    A slide stays in the shard that it is in, so that a slide more, one fewer or another `shard_size` leaves the others alone.
    """
    size = shard_size(config, cohort)
    numbers = {}
    for site in cohort.sites:
        folder = results / "sites" / site
        rows = [_row(row, config.tiles) for row in cohort.at(site).to_dict("records")]
        if site in config.slides.features:
            source = config.slides.features[site]
            dealt = {0: rows}
            put(folder / "shards/slides.json", slides_of(config.slides, site).to_json())
            for encoder in config.used_encoders:
                stamps = states([source.folder.replace("{encoder}", encoder)])
                put(folder / f"shards/features.{encoder}.json", json.dumps(stamps, indent=1))
        else:
            dealt = _dealt(rows, folder, size, config.slides.fingerprint == "full")
        for number, members in dealt.items():
            put(folder / f"shards/{number}.csv", _text(members))
        for path in folder.glob("shards/*.csv"):
            if int(path.stem) not in dealt:
                path.unlink()
        numbers[site] = sorted(dealt)
    put(results / "inputs/shards.json", json.dumps(numbers, indent=1))
    return numbers


def shard_size(config: Config, cohort: Cohort) -> int:
    """Slides per shard: as set, else by the size of the cohort."""
    return config.shard_size or (LARGE if len(cohort.slides) >= MANY_SLIDES else SMALL)


def _row(row: dict, tiles: TileSpec) -> Row:
    path, mask = row["path"], ""
    if tiles.tissue.masks is not None:
        mask = ";".join(states([tiles.tissue.masks.replace("{slide_id}", row["slide_id"])]).values())
    fixed = {name: str(row[name]) for name in ("slide_id", "patient_id", "site", "path", "mpp")}
    return fixed | {
        "listed": str(int(row["listed"])),
        "on_disk": state_on_disk(Path(path)) if path else "",
        "mask": mask,
    }


def _dealt(rows: Sequence[Row], folder: Path, size: int, full: bool) -> dict[int, list[Row]]:
    """Shard number -> its rows, in the order of the sheet. New slides fill the last shard, then open others."""
    known, touched = {}, _Touched(folder, full)
    for path in (folder / "shards").glob("*.csv"):
        known |= {row["slide_id"]: (int(path.stem), row) for row in read_rows(path)}
    dealt: dict[int, list[Row]] = {}
    new = []
    for row in rows:
        number, before = known.get(row["slide_id"], (None, None))
        if number is None or before is None:
            new.append(row)
        else:
            dealt.setdefault(number, []).append(row | {"on_disk": touched.state(number, before, row)})
    number = max(dealt, default=0)
    for row in new:
        if len(dealt.get(number, ())) >= size:
            number += 1
        dealt.setdefault(number, []).append(row)
    touched.save()
    order = {row["slide_id"]: position for position, row in enumerate(rows)}
    return {number: sorted(dealt[number], key=lambda row: order[row["slide_id"]]) for number in sorted(dealt)}


class _Touched:
    """Slides whose time changed and whose bytes did not: they count as they were."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.full = full
        self.folder, self.path = folder, folder / "shards/touched.json"
        self.same: dict[str, str] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.before = dict(self.same)
        self.checked: dict[int, dict[str, str]] = {}

    def state(self, shard: int, before: Row, now: Row) -> str:
        """The state to write down: the earlier one where only the time changed and the fingerprint did not."""
        then, state, slide = before["on_disk"], now["on_disk"], now["slide_id"]
        if state == then or self.same.get(slide) == state:
            return then
        if before["path"] != now["path"] or then.split(":")[0] != state.split(":")[0]:
            return state
        known = self._fingerprints(shard).get(slide)
        if not known or fingerprint(Path(now["path"]), self.full) != known:
            return state
        self.same[slide] = state
        return then

    def save(self) -> None:
        if self.same != self.before:
            put(self.path, json.dumps(self.same, indent=1))

    def _fingerprints(self, shard: int) -> dict[str, str]:
        if shard not in self.checked:
            path = self.folder / f"slides/{shard}.csv"
            rows = read_rows(path) if path.is_file() else []
            self.checked[shard] = {row["slide_id"]: row.get("fingerprint", "") for row in rows}
        return self.checked[shard]


def read_rows(path: Path) -> list[Row]:
    """A small CSV of ours, every cell text, as it was before `tables.harmless`."""
    with open(path, newline="", encoding="utf-8") as handle:
        return [{name: as_it_was(cell) for name, cell in row.items()} for row in csv.DictReader(handle, restval="")]


def _text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([harmless(row[name]) for name in COLUMNS] for row in rows)
    return text.getvalue()
