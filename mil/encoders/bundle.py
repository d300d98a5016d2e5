"""Weights from the hubs -> a folder that can be carried to a machine without a network, and what lies in it."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pandas as pd

from mil.config import EncoderSpec
from mil.encoders.build import loaded
from mil.encoders.entry import Entry
from mil.encoders.sources import BUNDLE, Fetched, HubFile, NoWeights, PackageFile, UrlFile, bundled, read_bundle
from mil.encoders.table import ENCODERS, resolve
from mil.encoders.weights import checked, read_state
from mil.errors import MilError
from mil.files import replacing, sha256_of, write_text
from mil.progress import Reporter

TIMEOUT_S = 60


def fetch(names: Iterable[str], folder: str | Path, reporter: Reporter, endpoint: str | None = None) -> None:
    """Put the weights of the encoders `names` into `folder`, with their hashes and commits in `bundle.json`.

    Files that are there and whole are left alone. What is fetched must be what the registry pins, or where it pins
    nothing, what `bundle.json` noted the first time. A gated model whose access was not granted, or a hub that cannot
    be reached, is one line that names the page. `endpoint` is a mirror of the hub; none: the hub itself.
    """
    folder = Path(folder)
    for name in names:
        entry = resolve(EncoderSpec(name=name))
        source = entry.source
        if not isinstance(source, Fetched):
            reporter.say(f"{entry.name}: {source.describe()}; nothing to fetch")
            continue
        target = bundled(folder, entry.name, source)
        noted = read_bundle(folder)
        first = noted.get(entry.name, {})
        if target.is_file() and first.get("sha256") == sha256_of(target):
            reporter.say(f"{entry.name}: {target} is there")
            continue
        commit = _download(entry.name, source, target, first, endpoint)
        note = {
            "file": str(target.relative_to(folder)),
            "sha256": sha256_of(target),
            "bytes": target.stat().st_size,
            "source": source.describe(),
            "commit": commit,
        }
        write_text(folder / BUNDLE, json.dumps(noted | {entry.name: note}, indent=2, sort_keys=True) + "\n")
        reporter.say(f"{entry.name}: {target}, {note['bytes']:,} bytes, sha256 {note['sha256'][:16]}")


def check(folder: str | Path, names: Iterable[str] = ()) -> pd.DataFrame:
    """State of the encoders `names` (default: those noted in the bundle and those that need none): name, state, reason.

    States: ok, missing (not in the bundle), altered (hash differs), unfit (tensors of another network).
    """
    folder = Path(folder)
    noted = read_bundle(folder)
    rows = []
    for name in names or sorted({*noted, *(n for n in ENCODERS if not isinstance(ENCODERS[n].source, Fetched))}):
        entry = resolve(EncoderSpec(name=name))
        rows.append({"name": name, **dict(zip(("state", "reason"), _state_of(entry, folder, noted), strict=True))})
    return pd.DataFrame(rows, columns=["name", "state", "reason"])


def _state_of(entry: Entry, folder: Path, noted: dict[str, dict[str, str]]) -> tuple[str, str]:
    source = entry.source
    if isinstance(source, NoWeights):
        return "ok", "needs no weights"
    if isinstance(source, PackageFile):
        path, expected = source.locate(), source.sha256
    elif isinstance(source, Fetched):
        path = bundled(folder, entry.name, source)
        expected = noted.get(entry.name, {}).get("sha256", "")
    else:
        return "missing", "only you have its weights; give their file in `weights`"
    if not path.is_file():
        return "missing", f"{path} does not exist; run `mil encoders fetch {entry.name} --weights {folder}`"
    try:
        checked(path, expected, BUNDLE)
    except MilError as error:
        return "altered", str(error)
    try:
        loaded(entry, read_state(path), path)
    except MilError as error:
        return "unfit", str(error)
    return "ok", str(path)


def _download(name: str, source: Fetched, target: Path, first: dict[str, str], endpoint: str | None) -> str:
    """Fetch to `target` what the registry pins or, where it pins nothing, what was fetched `first`; its commit."""
    with replacing(target) as partial:
        if isinstance(source, HubFile):
            commit = _from_hub(name, source, partial, source.revision or first.get("commit") or "main", endpoint)
        else:
            commit = _from_url(source, partial)
        checked(partial, source.sha256, "the registry")
        sha256, before = sha256_of(partial), first.get("sha256", "")
        if before and sha256 != before and not source.sha256:
            raise MilError(
                f"encoder {name}: {source.page} now gives another file (sha256 {sha256[:16]}) than was fetched first "
                f"({before[:16]}); to take the new one, remove '{name}' from {BUNDLE}"
            )
    return commit


def _from_hub(name: str, source: HubFile, target: Path, revision: str, endpoint: str | None) -> str:
    """Download a hub file at `revision` to `target`; its commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # The hub client's errors derive from those of its HTTP library, which differs between its versions.
    unreachable = cast(
        tuple[type[Exception], ...], (LocalEntryNotFoundError, OfflineModeIsEnabled, *HfHubHTTPError.__bases__)
    )
    try:
        metadata = get_hf_file_metadata(
            hf_hub_url(source.repository, source.file, revision=revision, endpoint=endpoint)
        )
        commit = metadata.commit_hash or revision
        cached = hf_hub_download(source.repository, source.file, revision=commit, endpoint=endpoint)
    except GatedRepoError as error:
        raise MilError(
            f"encoder {name} is gated: ask for access at {source.page}, log in with `hf auth login`, then fetch again"
        ) from error
    except unreachable as error:
        reason = " ".join(str(error).split())[:160]
        raise MilError(f"encoder {name} cannot be fetched from {source.page} ({reason})") from error
    if source.revision is not None and commit != source.revision:
        raise MilError(f"encoder {name}: the hub answered with commit {commit}, not the pinned {source.revision}")
    shutil.copyfile(cached, target)
    return commit


def _from_url(source: UrlFile, target: Path) -> str:
    """Download a file at a fixed address to `target`; empty, there is no commit."""
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT_S) as answer, open(target, "wb") as file:
            shutil.copyfileobj(answer, file)
    except urllib.error.URLError as error:
        raise MilError(f"{source.url} cannot be fetched ({error.reason}); model page: {source.page}") from error
    return ""
