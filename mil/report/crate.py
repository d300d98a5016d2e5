"""Finished results -> `ro-crate-metadata.json`: what went in, with which settings and versions, and what came out, by digest.

An RO-Crate 1.2 with a Process Run (https://w3id.org/ro/wfrun/process/0.5), written with the `rocrate` library. Slides are named by their
ids and fingerprints; their paths and patients are not in it.
"""

import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from mil.errors import MilError
from mil.files import sha256_of, write_text
from mil.results.leftovers import of_this_run
from mil.results.results import Results
from mil.tables import read_table
from mil.version import __version__

NAME = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
OUTPUTS = (
    *("config.json", "inputs/**/*", "census/*.csv", "bags/*.csv", "runs/*/*", "predictions/*.csv", "metrics/*.csv"),
    *("baselines/*/*.csv", "checks/*.csv", "figures/*", "report/index.html", "sites/*/slides.csv"),
    *("sites/*/tiles/shard*.csv", "sites/*/features/*/shard*.csv"),
)
"""Files by digest. Manifests (`shard*.csv`) stand for the tiles and features that they list with checksums."""
TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".html": "text/html",
    ".png": "image/png",
}
PACKAGES = ("torch", "timm", "numpy", "scikit-learn", "lifelines", "openslide-python", "h5py", "snakemake")


def write_crate(results: Results) -> Path:
    """Write the file into the results' folder; the crate is that folder. A `MilError` where there are no results yet."""
    paths = list(of_this_run(results, _outputs(results.folder)))
    if not any(path.parent.name == "predictions" for path in paths):
        raise MilError(f"{results.folder}: holds no predictions; run the workflow first")
    crate = ROCrate(version="1.2")
    title = results.config.report.title
    crate.name, crate.description = (
        title,
        f"Results of mil {__version__} for the cohort {results.config.cohort}: {title}",
    )
    # The newest result, so that the same results give the same file.
    ended = datetime.fromtimestamp(max(path.stat().st_mtime for path in paths), UTC)
    crate.datePublished = ended
    crate.license = "All rights reserved by the owners of the slides, unless they say otherwise."
    crate.root_dataset.append_to("conformsTo", crate.add(ContextEntity(crate, PROFILE, {"@type": "CreativeWork"})))
    software = _software(crate)
    made = [_file(crate, results.folder, path) for path in paths]
    action = crate.add_action(
        software,
        identifier="#run",
        object=_slides(crate, results),
        result=made,
        properties={
            "name": f"mil {__version__}, workflow of the cohort {results.config.cohort}",
            "endTime": ended.isoformat(),
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    crate.root_dataset["mentions"] = [action]
    target = results.folder / NAME
    write_text(target, json.dumps(crate.metadata.generate(), indent=1) + "\n")
    return target


def _outputs(folder: Path) -> Iterator[Path]:
    for pattern in OUTPUTS:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def _file(crate: ROCrate, folder: Path, path: Path) -> ContextEntity:
    kind = TYPES.get(path.suffix)
    stated = {"sha256": sha256_of(path), "contentSize": str(path.stat().st_size)} | (
        {"encodingFormat": kind} if kind else {}
    )
    return crate.add_file(dest_path=path.relative_to(folder).as_posix(), properties=stated)


def _slides(crate: ROCrate, results: Results) -> list[ContextEntity]:
    """Every slide of the sites' tables, with the fingerprint of its content ('' for features alone and for what cannot be read)."""
    slides = []
    for path in of_this_run(results, sorted(results.folder.glob("sites/*/slides.csv"))):
        for row in read_table(path).to_dict("records"):
            stated = {"@type": "CreativeWork", "name": str(row["slide_id"]), "identifier": str(row["fingerprint"])}
            slides.append(crate.add(ContextEntity(crate, f"#slide/{path.parent.name}/{row['slide_id']}", stated)))
    return slides


def _software(crate: ROCrate) -> ContextEntity:
    versions = {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    parts = [
        crate.add(ContextEntity(crate, f"#{name}", {"@type": "SoftwareApplication", "name": name, "version": number}))
        for name, number in versions.items()
    ]
    stated = {"@type": "SoftwareApplication", "name": "mil", "version": __version__, "softwareRequirements": parts}
    return crate.add(ContextEntity(crate, "#mil", stated))
