"""The protocol of a federation, which all parties hold.

`federation.yaml` is written by the coordinator, read and kept by every site: its SHA-256 is compared before every job, so
that nothing the server says later changes what a site computes. For `server.yaml` and `site.yaml` see `mil.hospital.parties`.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mil.config import parse, read_yaml
from mil.errors import nearest
from mil.files import SAFE_NAME
from mil.hospital.keys import check_public
from mil.spec import Spec
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec, TrainingSpec
from mil.strategies import STRATEGIES
from mil.strategies.strategy import Strategy

FLOOR_PATIENTS = 20
FLOOR_STEPS = 2
"""An update of one step is a gradient, which can be taken apart (`docs/threat_model.md`)."""
FLOOR_CELL = 5


def _safe(name: str) -> str:
    if not SAFE_NAME.match(name):
        raise ValueError("use letters, digits, '.', '_' and '-', first a letter or digit, at most 128")
    return name


KEY_FIELD = Field(default=None, pattern="^[0-9a-f]{128}$")
Name = Annotated[str, AfterValidator(_safe)]


class AddressSpec(Spec):
    """Where the server listens. Sites only ever open connections to this one port."""

    host: str
    """Host name that the sites resolve; it is the server's name in its certificate."""
    port: int = Field(default=8002, ge=1, le=65535)
    """TCP port that the server listens on."""
    organisation: Name = "coordinator"
    """Name of the coordinator's organisation in the server's certificate."""
    key: str | None = KEY_FIELD
    """Public key of the server, as `mil server key` prints it; none: the key of the first question, noted in every ledger."""


class MemberSpec(Spec):
    """A site of the federation."""

    organisation: Name
    """Name of the hospital in its certificate."""
    key: str | None = KEY_FIELD
    """Public key of the site, as `mil site key` prints it; with it the ledger's signatures can be attributed."""
    role: Literal["train", "external"] = "train"
    """`external`: receives the final models and returns metrics; takes no part in training or selection."""
    patients: int | None = Field(default=None, ge=1)
    """Most patients that the site may count with, as it told the others; none: whatever it says. More are refused, so that a
    site cannot outweigh the others by a number."""


class SharedFeaturesSpec(Spec):
    """What every site's feature files must say of themselves; none: not compared."""

    encoder: str | None = None
    """Name of the encoder, as `mil encoders list` has it."""
    weights_sha256: str | None = None
    """SHA-256 of the encoder's weights, as the feature files state it."""
    tile_mpp: float | None = Field(default=None, gt=0)
    """Microns per pixel of the tiles."""
    size_px: int | None = Field(default=None, ge=1)
    """Side of the tiles, in pixels."""


class RoundsSpec(Spec):
    """Who must answer, how long is waited, and how the work is cut into jobs."""

    required: tuple[str, ...] | None = None
    """Training sites without which no round counts; none: all of them."""
    minimum: int | None = Field(default=None, ge=1)
    """Fewest training sites in a round; none: all of them."""
    allow_subset: bool = False
    """A round may count without a training site that is not `required`. Off, every training site takes part in every round."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for the sites' answers to one question."""
    rounds_a_job: int = Field(default=50, ge=1)
    """Rounds after which the engine's job ends and a new one goes on from the checkpoint; a site that was away joins again there."""
    signatures: int | None = Field(default=None, ge=1)
    """Training sites that must have signed a state before a site takes it that did not compute it; none: all that took part."""
    silent_s: float = Field(default=120.0, ge=1)
    """A site that the server has not heard from for this long counts as away."""


class PayloadSpec(Spec):
    """What may cross between a site and the server. A site's own file may only be stricter."""

    max_mb_a_round: float = Field(default=64.0, gt=0)
    """Largest message either way, in MB of 1e6 bytes."""
    min_patients: int = Field(default=FLOOR_PATIENTS, ge=FLOOR_PATIENTS)
    """No update from fewer patients, those that a round's batches reach; nor, without `privacy`, from a single step."""
    small_cells: int = Field(default=10, ge=FLOOR_CELL)
    """Counts below this are not shown in metrics and statistics."""
    max_update: float | None = Field(default=None, gt=0)
    """Longest update of a model (L2 norm of its change in a round); a longer one is refused at the site and at the server.
    None: the server only raises an alarm over one that is far longer than the others'."""


class PrivacySpec(Spec):
    """Patient-level differential privacy: every patient's gradient is clipped, their sum gets noise (Abadi et al. 2016)."""

    noise: float = Field(gt=0)
    """Standard deviation of the noise over `clip`."""
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of a patient's gradient."""
    expected_batch: float = Field(default=16.0, gt=0)
    """Mean size of the batches that are drawn by Poisson sampling of patients."""
    epsilon: float = Field(gt=0)
    """Budget of every patient over all runs at a site, which stops before it is exceeded."""
    delta: float = Field(gt=0, lt=1)
    """Probability with which epsilon may not hold; choose it below 1 / the number of patients of a site."""


class FederationSpec(Spec):
    """The protocol: members, model, rounds, limits. Everybody's copy must be equal."""

    version: Literal[1] = 1
    federation: Name
    """Name of the federation; it stands in every certificate."""
    server: AddressSpec
    sites: dict[Name, MemberSpec]
    """The hospitals by name."""
    experiment: ExperimentSpec
    """What is trained: the keys of an experiment in a cohort file."""
    endpoint: EndpointSpec = EndpointSpec()
    """What is predicted: the keys of an endpoint in a cohort file."""
    features: SharedFeaturesSpec = SharedFeaturesSpec()
    code_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of the code that all parties run (`mil site check` prints a site's own); none: the server's, whatever it is."""
    rounds: RoundsSpec = RoundsSpec()
    payload: PayloadSpec = PayloadSpec()
    privacy: PrivacySpec | None = None
    trust: Literal["sites", "coordinator"] = "sites"
    """`sites`: every hospital computes the models itself from masked sums, and the coordinator reads no update. `coordinator`:
    the coordinator sends the models and reads every update, as strategies need that are no sums; see the threat model."""

    metrics: Literal["sums", "sites"] = "sums"
    """What the coordinator receives of the training sites' metrics and covariates at the end, under `trust: sites`. `sums`: their masked
    sums alone, and nothing of an external site. `sites`: each site's own, above the smallest cell of each class."""

    @model_validator(mode="before")
    @classmethod
    def _no_foreign_code(cls, data: Any) -> Any:
        """Refuse a head of somebody's file before anybody looks for that file."""
        experiment = data.get("experiment") if isinstance(data, dict) else None
        model = experiment.get("model") if isinstance(experiment, dict) else None
        name = model.get("name") if isinstance(model, dict) else model
        if isinstance(name, str) and name.startswith("python:"):
            raise ValueError(
                f"experiment.model: '{name}' is foreign code, which no hospital runs; choose a model that comes with mil"
            )
        return data

    @property
    def strategy(self) -> Strategy:
        """The strategy of the rounds: `finetune`'s base, as what comes after is the sites' own affair."""
        return self.experiment.strategy.of_rounds

    @property
    def training_sites(self) -> list[str]:
        """Sites that train, sorted."""
        return sorted(name for name, member in self.sites.items() if member.role == "train")

    @property
    def external_sites(self) -> list[str]:
        """Sites that only receive the final models, sorted."""
        return sorted(name for name, member in self.sites.items() if member.role == "external")

    @property
    def required_sites(self) -> list[str]:
        """Training sites without which no round counts."""
        if not self.rounds.allow_subset or self.rounds.required is None:
            return self.training_sites
        return sorted(self.rounds.required)

    @property
    def minimum_sites(self) -> int:
        """Fewest training sites in a round."""
        everyone = len(self.training_sites)
        return min(self.rounds.minimum or everyone, everyone) if self.rounds.allow_subset else everyone

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON: equal exactly where the protocol is."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @model_validator(mode="before")
    @classmethod
    def _scaled_at_each_site(cls, given: Any) -> Any:
        """Between hospitals the default of `training.scaling` is `site`, by which no moment of features leaves a hospital."""
        experiment = given.get("experiment") if isinstance(given, dict) else None
        if not isinstance(experiment, dict) or given.get("privacy") is not None:
            return given
        training = experiment.get("training", {})
        if not isinstance(training, dict) or "scaling" in training:
            return given
        return {**given, "experiment": {**experiment, "training": {**training, "scaling": "site"}}}

    @model_validator(mode="after")
    def _consistent(self) -> "FederationSpec":
        if not self.training_sites:
            raise ValueError("sites: none has the role train")
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", self.server.host):
            raise ValueError(f"server.host: {self.server.host!r} is not a host name")
        self._check_members()
        for name in self.rounds.required or ():
            if name not in self.training_sites:
                raise ValueError(f"rounds.required: '{name}' is no training site; {nearest(name, self.training_sites)}")
        if (self.rounds.required is not None or self.rounds.minimum is not None) and not self.rounds.allow_subset:
            raise ValueError("rounds: required and minimum say how few sites will do; they need allow_subset: true")
        self._check_experiment(self.experiment)
        if self.trust == "sites":
            self._check_masked()
        if self.privacy is not None:
            self._check_private(self.experiment)
        else:
            self._check_round(self.experiment.training)
        return self

    def _check_members(self) -> None:
        """Raise for names that collide, for keys that protect nothing, and for numbers of sites that there are not."""
        spelt: dict[str, str] = dict.fromkeys(("server", self.server.host.lower()), "the server")
        holders: dict[str, str] = {}
        keys = {f"sites.{name}": member.key for name, member in self.sites.items()} | {"server": self.server.key}
        for name in self.sites:
            if (other := spelt.setdefault(name.lower(), f"site '{name}'")) != f"site '{name}'":
                raise ValueError(f"sites: '{name}' has the name of {other}, but for case; rename it")
        for party, key in keys.items():
            if key is None:
                continue
            try:
                check_public(key)
            except ValueError as error:
                raise ValueError(
                    f"{party}.key: {key[:12]}... is no key: {error}; put in what `mil site key` prints"
                ) from error
            for half in (key[:64], key[64:]):
                if (holder := holders.setdefault(half, party)) != party:
                    raise ValueError(f"{party}.key: is the key of {holder} too; each party makes its own")
        for kind in ("minimum", "signatures"):
            if (getattr(self.rounds, kind) or 0) > len(self.training_sites):
                raise ValueError(
                    f"rounds.{kind}: {getattr(self.rounds, kind)}, but {len(self.training_sites)} sites train"
                )

    def _check_masked(self) -> None:
        """Raise where no sum would hide a hospital's part."""
        way_out = "set `trust: coordinator` if the hospitals agree that the coordinator reads every update"
        if not self.strategy.is_sum:
            sums = sorted(name for name, kind in STRATEGIES.items() if kind.is_sum and kind.between_hospitals)
            raise ValueError(
                f"trust: the server of '{self.strategy.name}' needs more than a sum; choose one of {', '.join(sums)}, or {way_out}"
            )
        sites = len(self.training_sites)
        fewest = min(self.minimum_sites, max(1, round(self.strategy.share * sites)))
        if fewest < 2:
            raise ValueError(
                f"trust: a round with one training site is that site's update; ask two or more, or {way_out}"
            )
        if (self.rounds.signatures or 0) > fewest:
            raise ValueError(
                f"rounds.signatures: {self.rounds.signatures}, but a round may have {fewest} training sites; raise minimum or lower it"
            )
        lacking = [name for name in self.training_sites if self.sites[name].key is None]
        if lacking:
            raise ValueError(
                f"sites.{lacking[0]}.key: is not set, and masks need the key of every training site; put in what "
                f"`mil site key site.yaml` prints there, or {way_out}"
            )

    def _check_round(self, training: TrainingSpec) -> None:
        """Raise where no site's round could be long enough, however many patients it has."""
        steps, least = training.local_steps, self.payload.min_patients
        if steps is not None and (steps < FLOOR_STEPS or steps * training.batch_size < least):
            raise ValueError(
                f"experiment.training: {steps} steps of {training.batch_size} patients a round tell too much of each patient; at "
                f"least {FLOOR_STEPS} steps over {least} patients, or privacy, are needed between hospitals"
            )

    def _check_experiment(self, experiment: ExperimentSpec) -> None:
        """Raise where the stanza cannot be run between hospitals, or names no folder of a site's results."""
        for key in ("encoder", "endpoint"):
            try:
                _safe(getattr(experiment, key))
            except ValueError as error:
                raise ValueError(f"experiment.{key}: {getattr(experiment, key)!r} is no name; {error}") from error
        name = experiment.strategy.name
        if not (experiment.strategy.between_hospitals and self.strategy.between_hospitals):
            run = [strategy for strategy, kind in STRATEGIES.items() if kind.between_hospitals]
            raise ValueError(
                f"experiment.strategy: '{name}' is not run between hospitals; choose one of {', '.join(run)}"
            )
        if experiment.protocol != "cross_validation":
            raise ValueError(
                "experiment.protocol: only cross_validation is run between hospitals; leave a site out by its role, external"
            )
        if experiment.search is not None and experiment.search.model:
            raise ValueError(
                "experiment.search.model: heads of several shapes do not travel together; choose the head with `mil train`, "
                "or make a protocol for each"
            )
        if self.strategy.cyclic and self.rounds.allow_subset:
            raise ValueError("rounds.allow_subset: cyclic visits every site in every round; leave it out")
        if self.strategy.local_parts and self.external_sites:
            raise ValueError(
                f"sites: '{self.external_sites[0]}' is external and would have no layers of its own under {self.strategy.name}; leave it out"
            )

    def _check_private(self, experiment: ExperimentSpec) -> None:
        """Raise where something would leave a site without noise."""
        training = experiment.training
        if experiment.search is not None or training.replicas > 1:
            raise ValueError(
                "privacy: every model more costs the patients more, and the losses that would choose between candidates carry "
                "no noise; leave search and replicas out"
            )
        if training.scaling != "none" or training.imbalance != "none" or experiment.covariates:
            raise ValueError(
                "privacy: means and class counts carry no noise; set experiment.training.scaling and imbalance to 'none', "
                "and leave covariates out"
            )
        for key in ("local_epochs", "local_steps", "max_tiles"):
            if getattr(training, key) != TrainingSpec.model_fields[key].default:
                raise ValueError(f"privacy: a round is one pass over all tiles; leave experiment.training.{key} out")
        if self.endpoint.kind not in {"binary", "multiclass"} or self.strategy.controls:
            raise ValueError(
                "privacy: only endpoints with classes, and no scaffold, whose control variates carry no noise"
            )


def read_federation(path: str | Path) -> FederationSpec:
    """The protocol's file."""
    return parse(FederationSpec, read_yaml(path), str(path))
