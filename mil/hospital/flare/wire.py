"""What FLARE's envelope holds: our bytes under one key, their number where they come in pieces, or one word that says why there are none."""

import json
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.workspace import Workspace

from mil.hospital.blobs import Blob

TASK = "question"
MESSAGE = "message"
SIZE = "size"
WORD = "word"
CODE = "code"
SPEC_FILE = "mil.json"
CODES = {
    "payload": "the message is not of the protocol",
    "mismatch": "code or protocol differ",
    "patients": "too few patients",
    "budget": "the privacy budget is spent",
    "run": "the hospital has not agreed to the run",
    "data": "its data or settings do not allow it",
    "disk": "its ledger cannot be written, or its disk is short of free_gb",
    "busy": "another process of the site is answering",
    "revoked": "a site of the question was revoked",
    "fault": "an error at the site, which its own log shows",
    "other": "another reason, which its ledger states",
}
"""All that a site says of a refusal, and what it means."""


def envelope(message: bytes, word: str = "") -> Shareable:
    """Bytes -> FLARE's message; `word`: of a question, what pieces of it and of its answer are asked for with."""
    shareable = Shareable()
    shareable[MESSAGE], shareable[WORD] = message, word
    return shareable


def announcement(size: int, word: str = "") -> Shareable:
    """FLARE's message for a message of `size` bytes that travels in pieces."""
    shareable = Shareable()
    shareable[SIZE], shareable[WORD] = size, word
    return shareable


def refusal(code: str) -> Shareable:
    """A site's answer when it gives none."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply[CODE] = code if code in CODES else "other"
    return reply


def opened(shareable: Shareable, pieces: Path) -> Blob | str:
    """FLARE's message -> bytes, or the file `pieces` where it came in pieces; or why there is none: a word of `CODES` or FLARE's return code."""
    message, size = shareable.get(MESSAGE), shareable.get(SIZE)
    if shareable.get_return_code() == ReturnCode.OK and isinstance(message, bytes):
        return message
    if shareable.get_return_code() == ReturnCode.OK and pieces.is_file() and size == pieces.stat().st_size:
        return pieces
    code = shareable.get(CODE)
    return f"refused: {code} ({CODES[code]})" if code in CODES else f"refused: {shareable.get_return_code()}"


def spec_file(context: FLContext) -> Path:
    """The side's own YAML file, which its kit names; never the job."""
    workspace = context.get_prop(FLContextKey.WORKSPACE_OBJECT)
    if not isinstance(workspace, Workspace):
        workspace = context.get_engine().get_workspace()  # type: ignore[union-attr]
    path = Path(workspace.get_site_config_dir()) / SPEC_FILE
    return Path(json.loads(path.read_text(encoding="utf-8"))["file"])
