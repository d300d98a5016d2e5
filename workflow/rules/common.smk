"""The validated config, the cohort's sheet, and the names that rules share."""

import os
import sys

from snakemake.exceptions import WorkflowError

from mil.config import Config, ReportSpec
from mil.config import parse as parse_spec
from mil.errors import MilError
from mil.slides.sheet import read_cohort

# `mil` is the one installed beside this Python, whether or not its environment is activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")

try:
    settings_of_cohort = parse_spec(Config, config, "config")
    if not settings_of_cohort.cohort:
        raise MilError("no cohort is named; run snakemake --configfile configs/cohorts/<name>.yaml")
    if not settings_of_cohort.run:
        raise MilError("no experiment is named; list some under run: (configs/experiments.yaml has them)")
    cohort = read_cohort(
        settings_of_cohort.slides,
        sorted({settings_of_cohort.endpoints[e.endpoint].column for e in settings_of_cohort.selected().values()}),
    )
except MilError as error:
    raise WorkflowError(str(error)) from None

EXPERIMENTS = settings_of_cohort.selected()
ENCODERS = sorted({experiment.encoder for experiment in EXPERIMENTS.values()})
ENDPOINTS = sorted({experiment.endpoint for experiment in EXPERIMENTS.values()})
SITES = cohort.sites
TRAIN_SITES = [site for site in SITES if settings_of_cohort.slides.roles[site] == "train"]
# `<results>` in the rules' files and logs; in params, where Snakemake does not put it in, RESULTS.
RESULTS = f"{settings_of_cohort.results}/{settings_of_cohort.cohort}"


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",


wildcard_constraints:
    site=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    encoder=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    endpoint=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    experiment=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    shard=r"\d+",


def covariates_of(endpoint):
    """Columns of the patient table that the endpoint's experiments read besides the slides, in the order of their first use."""
    experiments = [one for one in EXPERIMENTS.values() if one.endpoint == endpoint]
    return list(dict.fromkeys(name for one in experiments for name in one.covariates))


def shards(site):
    """Numbers of a site's shards: runs of `shard_size` rows of its slide table."""
    return range(-(-len(cohort.at(site)) // settings_of_cohort.shard_size))


def tile_manifests(site):
    return expand("<results>/sites/{site}/tiles/shard{shard}.csv", site=site, shard=shards(site))


def feature_manifests(site, encoder):
    return expand(
        "<results>/sites/{site}/features/{encoder}/shard{shard}.csv",
        site=site,
        encoder=encoder,
        shard=shards(site),
    )


def state_on_disk(site):
    """Size and time of every slide of a site: a replaced slide is checked again, though slides are not inputs."""
    states = (os.stat(path) for path in cohort.at(site)["path"])
    return [f"{state.st_size}:{state.st_mtime_ns}" for state in states]
