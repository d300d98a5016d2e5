"""Values of every kind of message. No free text crosses: a text is a name, a version, a digest or a key."""

from typing import Annotated, Literal

from pydantic import FailFast, Field

from mil.hospital.config import Name
from mil.hospital.lines import Metrics, Number
from mil.hospital.payload import Values

NameValue = Annotated[Name, Field(description="a name")]
MaybeName = Annotated[Name | None, Field(description="a name or nothing")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$", description="a version")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="a SHA-256")]
MaybeSha256 = Annotated[Sha256 | None, Field(description="a SHA-256 or nothing")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$", description="a public key or a signature")]
Numbers = Annotated[list[int], FailFast()]


class Identity(Values, frozen=True):
    """Versions and digests that must be equal at all parties."""

    mil: Version
    torch: Version
    code_sha256: Sha256
    spec_sha256: Sha256


class JoinQuestion(Identity, frozen=True):
    """Who is there: the first question of every job."""

    kind: Literal["join"]
    run: NameValue
    ledger: Sha256
    canary: bool
    key: Key


class CloseQuestion(Values, frozen=True):
    """The last question of a run: the head of the server's complete ledger."""

    kind: Literal["close"]
    run: NameValue
    spec_sha256: Sha256
    ledger: Sha256


class Asked(Values, frozen=True):
    """A question about models of the protocol; `moments` and `canary` state no more where the coordinator is trusted."""

    kind: Literal["moments", "canary", "train", "watch", "finish"]
    run: NameValue
    phase: NameValue
    spec_sha256: Sha256
    ledger: Sha256
    slots: Numbers
    choices: Numbers


class AskedRound(Asked, frozen=True):
    """A round, where the coordinator is trusted; `used`: for each training site the round of its last answer that was used."""

    kind: Literal["train", "watch"]
    round: int
    used: Numbers


class AskedFinish(Asked, frozen=True):
    """The end, where the coordinator is trusted; `rounds` of every final model."""

    kind: Literal["finish"]
    rounds: Numbers
    used: Numbers


class Followed(Asked, frozen=True):
    """A question whose models every site computes itself."""

    step: int
    state_sha256: Sha256
    """Of the state at this step."""
    asked: Numbers
    """Sites that are asked now."""
    relayed: Numbers
    """Sites whose answers to the last question it carries."""


class FollowedRound(Followed, frozen=True):
    """A round of which every site computes the models itself."""

    kind: Literal["train", "watch"]
    round: int


Question = JoinQuestion | CloseQuestion | Asked


class AnyAnswer(Values, frozen=True):
    """Any answer of a site."""

    kind: Literal["join", "moments", "canary", "train", "watch", "finish", "close"]
    site: NameValue
    ledger: Sha256
    question_sha256: Sha256
    signature: Key


class JoinAnswer(AnyAnswer, Identity, frozen=True):
    """A site and its features."""

    kind: Literal["join"]
    key: Key
    step: int
    width: int
    encoder: MaybeName
    weights_sha256: MaybeSha256
    tile_mpp: Number
    size_px: int | None
    stain: MaybeName
    settings: MaybeName
    data_sha256: Sha256
    num_bags: int | None


class FinishAnswer(AnyAnswer, Metrics, frozen=True):
    """A site's own metrics."""

    kind: Literal["finish"]


class WithheldAnswer(FinishAnswer, frozen=True):
    """Under privacy, and where metrics are masked sums: no number of the site alone."""

    patients: None
    positives: None
    metric: None
    variance: None
    logrank_difference: None
    logrank_variance: None


class FollowedAnswer(AnyAnswer, frozen=True):
    """An answer from models that the site computed itself."""

    state_sha256: Sha256
    """Of the state that it was computed from."""
    asked: Numbers
    """Sites whose masks are in it."""
    masked_sha256: Sha256
    """Of the question that the masks belong to."""


class FollowedFinish(FollowedAnswer, FinishAnswer, frozen=True):
    """The same with the site's own metrics."""

    kind: Literal["finish"]


class FollowedWithheld(FollowedAnswer, WithheldAnswer, frozen=True):
    """The same without them."""

    kind: Literal["finish"]


FINISHED = tuple(Metrics.model_fields)
UNSIGNED = "0" * 128
"""Stands for the signature of an answer until it is signed."""
