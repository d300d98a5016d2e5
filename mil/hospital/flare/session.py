"""The operator's line to FLARE's server: who is connected, submit, abort."""

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from mil.errors import MilError
from mil.hospital.flare.kits import OPERATOR_KIT
from mil.hospital.parties import ServerSpec

LOST = (NoConnection, SessionClosed, FLCommunicationError)


class ServerAway(MilError):
    """The server cannot be reached just now."""


@contextmanager
def session(
    spec: ServerSpec, operator: str | None = None, kit: str = OPERATOR_KIT, wait_s: float = 15.0
) -> Iterator[Session]:
    """A session as the operator; FLARE's errors come out as ours."""
    name = operator or spec.operator
    opened: Session | None = None
    silence = logging.NullHandler()  # its warnings about a lost connection; the error itself comes out below
    logging.getLogger().addHandler(silence)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it connects
            opened = new_secure_session(name, str(Path(spec.workspace) / kit), timeout=wait_s)
        yield opened
    except LOST as error:
        raise ServerAway(
            f"the server does not answer {name} ({type(error).__name__}: {error}); is it running?"
        ) from error
    except AuthorizationError as error:
        raise MilError(f"{name} may not do this: {error}; a certificate of role lead is needed") from error
    except (InternalError, InvalidJobDefinition, JobNotFound, AuthenticationError) as error:
        raise MilError(f"the server refused: {error}") from error
    finally:
        if opened is not None:
            opened.close()
        logging.getLogger().removeHandler(silence)


def connected(line: Session) -> set[str]:
    """Sites that are connected now."""
    return {client.name for client in line.get_system_info().client_info}


def abort(line: Session, job: str) -> None:
    """End a job, where there is one: after a crash the engine believes for ever in jobs that do not run."""
    with contextlib.suppress(InternalError, JobNotRunning, JobNotFound):
        line.abort_job(job)
