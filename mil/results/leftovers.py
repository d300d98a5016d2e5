"""Files that earlier runs left below the results, of sites, experiments, encoders and endpoints that the settings no longer name."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mil.results.results import Results


def of_this_run(results: Results, paths: Iterable[Path]) -> Iterator[Path]:
    """The paths (below the results folder) that are not left over; the folder names what earlier runs had."""
    folder, experiments = results.folder, results.experiments
    now = {*results.sites, *experiments, *results.endpoints, *(each.encoder for each in experiments.values())}
    patterns = ("sites/*", "sites/*/features/*", "runs/*", "bags/*.flow.csv")
    there = {path.name.removesuffix(".flow.csv") for pattern in patterns for path in folder.glob(pattern)}
    known = {name: re.compile(rf"(^|\.){re.escape(name)}(\.|$)") for name in now | there}
    for path in paths:
        parts = path.relative_to(folder).parts[1:]
        named = {name for name, pattern in known.items() if any(map(pattern.search, parts))}
        longest = {name for name in named if not any(name != other and known[name].search(other) for other in named)}
        if longest <= now:
            yield path
