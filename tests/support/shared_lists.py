"""What two hospitals do to find shared patients, as the tests ask for it."""

from pathlib import Path

from hospitals import Hospitals
from typer.testing import CliRunner

from mil.commands.hospital import site as commands
from mil.hospital.preflight import check_site
from mil.hospital.shared_files import SentFile, folder_of
from mil.hospital.shared_patients import Exchanges

Sets = dict[str, list[str]]


def out(hospitals: Hospitals, sender: str, recipient: str, kind: str) -> Path:
    return folder_of(hospitals.site(sender)) / f"{sender}-to-{recipient}.{kind}.json"


def part_of(hospitals: Hospitals, name: str, ids: Sets | None = None) -> Exchanges:
    """A site's side; `ids`: elements in place of those of its files."""
    found = Exchanges(hospitals.site(name), hospitals.protocol)
    found.ids = found.ids if ids is None else {kind: {one: one for one in values} for kind, values in ids.items()}
    return found


def sent(path: Path) -> SentFile:
    return SentFile.model_validate_json(path.read_bytes())


def say(hospitals: Hospitals, name: str, *words: object) -> str:
    done = CliRunner().invoke(commands, ["shared", str(hospitals.folder / name / "site.yaml"), *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def duplicates(hospitals: Hospitals, name: str) -> list[tuple[str, str]]:
    return [(one.state, one.sentence) for one in check_site(hospitals.site(name)) if one.check == "duplicates"]
