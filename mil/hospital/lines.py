"""What the lines of a ledger must hold: a party can sign anything, so types are checked before two ledgers are compared."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from mil.errors import CorruptFile
from mil.hospital.payload import FINITE, fault_of

Number = float | int | None
LARGEST = 1e38
"""In size; larger ones, and NaN, cannot be added up."""
Total = Annotated[float, Field(ge=0, le=LARGEST)]


class Line(BaseModel, extra="allow", strict=True, frozen=True):
    """Of any event; a line may hold more."""

    event: str


class OtherLine(Line, frozen=True):
    """Of an event of which nothing is compared but the run."""

    run: str = ""


class Metrics(BaseModel, strict=True, frozen=True):
    """A site's own metrics, `null` where they are withheld."""

    patients: int | None
    positives: int | None
    metric: Number
    variance: Number
    logrank_difference: Number
    logrank_variance: Number

    @field_validator("*")
    @classmethod
    def _can_be_summed(cls, value: object) -> object:
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise ValueError(FINITE)
        return value

    @property
    def metrics(self) -> dict[str, Number]:
        """The numbers by name."""
        return {name: getattr(self, name) for name in Metrics.model_fields}


class SiteResult(Metrics, Line, frozen=True):
    """The end of a run at a site."""

    run: str


class SiteClosed(Line, frozen=True):
    """The last exchange of a run."""

    run: str
    kind: str
    server_ledger: str


class SiteAnswer(SiteClosed, frozen=True):
    """A question that a site answered."""

    asked_sha256: str
    answer_sha256: str
    phase: str = ""
    round: int = 0


class AnsweredLine(BaseModel, extra="allow", strict=True, frozen=True):
    """What the server keeps of an answer."""

    answer_sha256: str
    ledger: str
    signature: str = ""
    metrics: Metrics | None = None


class Sums(BaseModel, extra="forbid", strict=True, frozen=True):
    """What the server's line of a `finish` holds of masked metrics: `mil.hospital.results.POOLED`."""

    sites: Total
    patients: Total
    positives: Total
    metric: Total
    variance: Total
    logrank_difference: float = Field(ge=-LARGEST, le=LARGEST)
    logrank_variance: Total


class Collected(Line, frozen=True):
    """What the server's lines may hold of the sites."""

    answered: dict[str, AnsweredLine] = {}
    missing: dict[str, str] = {}
    published: dict[str, str] = {}
    endpoint_kind: str = ""
    roles: dict[str, str] = {}
    pooled: Sums | None = None


class ServerLine(Collected, OtherLine, frozen=True):
    """Of any other event at the server."""


class ServerAnswer(Collected, frozen=True):
    """A question that moved the run on, or did not."""

    run: str
    kind: str
    phase: str
    round: int
    asked_sha256: str


class ServerClosed(Line, frozen=True):
    """The last line of a run."""

    run: str
    heads: dict[str, str]


AT_SITE = {"answered": SiteAnswer, "closed": SiteClosed, "result": SiteResult}
AT_SERVER = {"answered": ServerAnswer, "lost": ServerAnswer, "waiting": ServerAnswer, "closed": ServerClosed}


def check_lines(entries: Sequence[dict[str, Any]], actor: str, where: str) -> None:
    """Raise `CorruptFile` for the first line that does not hold what `actor` (`server` or a site) writes there."""
    kinds, other = (AT_SERVER, ServerLine) if actor == "server" else (AT_SITE, OtherLine)
    for number, entry in enumerate(entries, start=1):
        event = entry.get("event")
        try:
            (kinds.get(event, other) if isinstance(event, str) else Line).model_validate(entry)
        except ValidationError as error:
            raise CorruptFile(
                f"{where}: line {number}, signed by {actor}: '{fault_of(error)[0]}' is missing or is not what mil writes there"
            ) from error
