"""What the lines of a ledger must hold: a party can sign anything, so types are checked before two ledgers are compared."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mil.errors import CorruptFile

Number = float | int | None


class Line(BaseModel):
    """Of any event; a line may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)

    event: str


class OtherLine(Line):
    """Of an event of which nothing is compared but the run."""

    run: str = ""


class Metrics(BaseModel):
    """A site's own metrics, `null` where they are withheld."""

    model_config = ConfigDict(strict=True)

    patients: int | None
    positives: int | None
    metric: Number
    variance: Number
    logrank_difference: Number
    logrank_variance: Number


class SiteResult(Metrics, Line):
    """The end of a run at a site."""

    run: str


class SiteClosed(Line):
    """The last exchange of a run."""

    run: str
    kind: str
    server_ledger: str


class SiteAnswer(SiteClosed):
    """A question that a site answered."""

    asked_sha256: str
    answer_sha256: str
    phase: str = ""
    round: int = 0


class Told(BaseModel):
    """What the server keeps of an answer."""

    model_config = ConfigDict(extra="allow", strict=True)

    answer_sha256: str
    ledger: str
    signature: str = ""
    metrics: Metrics | None = None


class Sums(BaseModel):
    """What the server's line of a `finish` holds of masked metrics: `mil.hospital.results.POOLED`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sites: float
    patients: float
    positives: float
    metric: float
    variance: float
    logrank_difference: float
    logrank_variance: float


class Collected(Line):
    """What the server's lines may hold of the sites."""

    answered: dict[str, Told] = {}
    missing: dict[str, str] = {}
    published: dict[str, str] = {}
    endpoint_kind: str = ""
    roles: dict[str, str] = {}
    pooled: Sums | None = None


class ServerLine(Collected, OtherLine):
    """Of any other event at the server."""


class ServerAnswer(Collected):
    """A question that moved the run on, or did not."""

    run: str
    kind: str
    phase: str
    round: int
    asked_sha256: str


class ServerClosed(Line):
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
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise CorruptFile(
                f"{where}: line {number}, signed by {actor}: '{key[:80]}' is missing or is not what mil writes there"
            ) from error
