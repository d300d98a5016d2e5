"""`mil server`, `mil site` and `mil ledger`: the command line of a federation. Each opens a side's own file and calls."""

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mil.commands.options import LogOption, checked_by, reporter_of
from mil.errors import MilError
from mil.files import require_file

if TYPE_CHECKING:
    from mil.hospital.parties import ServerSpec, SiteSpec

EXTRA = ("cryptography", "dp_accounting", "nvflare")


def _check_extra() -> None:
    """Raise where the packages of the extra `hospital` are not installed."""
    lacking = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if lacking:
        raise MilError(
            f"a federation between hospitals needs {', '.join(lacking)}; in the folder of mil, `pip install -e '.[hospital]'`"
        )


server = typer.Typer(
    no_args_is_help=True, callback=_check_extra, help="The coordinator's side of a federation between hospitals."
)
site = typer.Typer(no_args_is_help=True, callback=_check_extra, help="A hospital's side of a federation.")
ledger = typer.Typer(no_args_is_help=True, callback=_check_extra, help="The records of what crossed between hospitals.")


def _server(file: Path) -> "ServerSpec":
    from mil.hospital.parties import ServerSpec, read_party

    return read_party(ServerSpec, file)


def _site(file: Path) -> "SiteSpec":
    from mil.hospital.parties import SiteSpec, read_party

    return read_party(SiteSpec, file)


def _check_ledger(path: Path) -> None:
    require_file(path, "ledger")


ServerFile = Annotated[Path, typer.Argument(help="The coordinator's file, server.yaml.", callback=checked_by(_server))]
SiteFile = Annotated[Path, typer.Argument(help="The hospital's file, site.yaml.", callback=checked_by(_site))]
WaitOption = Annotated[
    float, typer.Option("--wait", help="Seconds to wait for the server and the sites that are needed.")
]


@server.command()
def provision(
    file: ServerFile,
    request: Annotated[
        list[Path] | None,
        typer.Argument(help="Sites' requests to sign; none: make the authority and the server's own kit."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Fingerprint of the site's key, as the hospital read it out; another one is not signed."),
    ] = None,
) -> None:
    """Make the certificate authority; later, sign the sites' requests."""
    from mil.hospital.flare import kits

    spec = _server(file)
    if not request:
        fingerprint = kits.make_authority(spec, file.resolve())
        typer.echo(f"authority: {spec.workspace}/authority (keep it offline, and a backup)")
        typer.echo(f"tell the sites by telephone: {fingerprint}")
    for path in request or []:
        typer.echo(f"send back: {kits.approve(spec, path, key=key)}")
        typer.echo(f"if the hospital reads out the same key: {kits.request_fingerprint(path)}")


@server.command()
def start(file: ServerFile) -> None:
    """Run the server until it is stopped; for a service manager. Sites connect to its one port."""
    from mil.hospital.flare.kits import days_left
    from mil.hospital.flare.processes import become, server_command
    from mil.hospital.preflight import SOON_DAYS

    spec = _server(file)
    for kit, days in days_left(spec).items():
        if days < 0:
            raise MilError(f"{spec.workspace}/{kit}: the certificate has ended; `mil server renew {file}`")
        if days < SOON_DAYS:
            typer.echo(
                f"{spec.workspace}/{kit}: the certificate ends in {days} days; `mil server renew {file}`", err=True
            )
    become(server_command(spec), "mil server start")


@server.command()
def renew(file: ServerFile) -> None:
    """New certificates of the server and its operator; stop the server before, and start it after. Sites need nothing."""
    from mil.hospital.flare.kits import renew as renew_kits

    for path in renew_kits(_server(file), file.resolve()):
        typer.echo(f"the old one is in {path}")


@server.command()
def revoke(file: ServerFile, member: Annotated[str, typer.Argument(help="Name of the site.")]) -> None:
    """Put a site on the list that the authority signs: it is asked no more, and the others answer nothing with it."""
    from mil.hospital.revocation import revoke as revoke_site

    typer.echo(f"revoked: {member} ({revoke_site(_server(file), member)}; the sites are sent it)")


@server.command()
def canary(file: ServerFile, wait: WaitOption = 600.0, log: LogOption = None) -> None:
    """Two patients' slides a site, one step, the whole way there and back; nothing of it is kept. Before every real run."""
    from mil.hospital.coordinator import canary as fly

    folder = fly(_server(file), reporter_of(log), wait)
    typer.echo(f"the canary is back: every site answered ({folder}/ledger.jsonl)")


@server.command()
def run(
    file: ServerFile,
    name: Annotated[str, typer.Argument(help="Name of the run; the same name goes on where it stopped.")],
    wait: WaitOption = 3600.0,
    rehearse: Annotated[bool, typer.Option("--canary/--no-canary", help="A canary before a new run.")] = True,
    log: LogOption = None,
) -> None:
    """Run the protocol's experiment over the sites, through every interruption, until it is complete."""
    from mil.hospital.coordinator import run as run_federation

    typer.echo(f"result: {run_federation(_server(file), name, reporter_of(log), wait, rehearse)}")


@server.command()
def status(file: ServerFile, name: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Where a run stands, and which site was missing when."""
    from mil.hospital.coordinator import status as status_of

    for line in status_of(_server(file), name).lines():
        typer.echo(line)


PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0: any free one.")]
NotifyOption = Annotated[
    str | None,
    typer.Option("--notify", help="Command for end, refusal, alarm, silence: JSON on its input, a line in MIL_EVENT."),
]


def _words(command: str | None) -> list[str]:
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise MilError(f"--notify {command!r}: {error}; write it as for a shell") from error


@server.command("watch")
def watch_server(file: ServerFile, port: PortOption = 0, notify: NotifyOption = None, log: LogOption = None) -> None:
    """A local, read-only page: rounds, sites, losses, alarms, bytes, as this machine's records have them."""
    from mil.hospital.page import watch
    from mil.hospital.watch import Watched

    watch(Watched(_server(file)), port, _words(notify), reporter_of(log))


@site.command("watch")
def watch_site(file: SiteFile, port: PortOption = 0, notify: NotifyOption = None, log: LogOption = None) -> None:
    """A local, read-only page: what this site gave, to whom, what it refused, epsilon, certificate, disk."""
    from mil.hospital.page import watch
    from mil.hospital.watch import Watched

    watch(Watched(_site(file)), port, _words(notify), reporter_of(log))


@site.command()
def check(file: SiteFile) -> None:
    """Look for everything that may go wrong before joining. Nothing is sent."""
    from mil.hospital.preflight import check_site

    findings = check_site(_site(file))
    for finding in findings:
        typer.echo(f"{finding.state:8s} {finding.check}: {finding.sentence}")
    faults = [finding for finding in findings if finding.state == "fault"]
    if faults:
        raise MilError(f"{len(faults)} of {len(findings)} checks failed; the first: {faults[0].sentence}")


@site.command()
def shared(
    file: SiteFile,
    received: Annotated[
        list[Path] | None,
        typer.Argument(help="Files from other hospitals; none: make the first file for each of them."),
    ] = None,
    again: Annotated[
        list[str] | None,
        typer.Option("--again", help="Site to compare with anew; may be given more than once.", show_default=False),
    ] = None,
) -> None:
    """Find patients and slides that another hospital has too; neither learns anything of the others. Say it for every file that comes."""
    from mil.hospital.shared_patients import exchange

    for line in exchange(_site(file), received or [], again or []):
        typer.echo(line)


@site.command()
def key(file: SiteFile) -> None:
    """Print this hospital's public key, for `sites.NAME.key` in federation.yaml; the private one is made here and stays."""
    from mil.hospital.keys import PartyKey

    typer.echo(PartyKey(_site(file).workspace).public)


@server.command("key")
def server_key(file: ServerFile) -> None:
    """Print the server's public key, for `server.key` in federation.yaml; the private one is made here and stays."""
    from mil.hospital.keys import PartyKey

    typer.echo(PartyKey(_server(file).workspace).public)


@site.command()
def join(
    file: SiteFile,
    signed: Annotated[
        Path | None,
        typer.Argument(help="What the coordinator signed; none: make the request, or, with a kit, run the site."),
    ] = None,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="The authority's fingerprint, as you were told it.", show_default=False)
    ] = "",
) -> None:
    """Three steps: make a request; make the kit from what came back; run the site until it is stopped."""
    from mil.hospital.flare import kits
    from mil.hospital.flare.processes import become, site_command
    from mil.hospital.preflight import check_site

    spec = _site(file)
    kit = Path(spec.workspace) / kits.SITE_KIT
    if signed is not None:
        if not fingerprint:
            raise MilError(
                "give --fingerprint: the authority's fingerprint, as the coordinator told you by another way"
            )
        typer.echo(f"kit: {kits.join(spec, signed, fingerprint, file.resolve())}; now `mil site check {file}`")
    elif not kit.exists():
        request = kits.request(spec)
        typer.echo(f"send to the coordinator: {request} (the private key stays here)")
        typer.echo(f"read out by telephone: {kits.request_fingerprint(request)}")
    else:
        faults = [finding for finding in check_site(spec) if finding.state == "fault"]
        if faults:
            raise MilError(f"{faults[0].check}: {faults[0].sentence}")
        become(site_command(spec), f"mil site join as {spec.site}")


@ledger.command("verify")
def verify_ledgers(
    record: Annotated[
        Path, typer.Argument(help="A ledger; the server's where sites are given.", callback=checked_by(_check_ledger))
    ],
    site_records: Annotated[
        list[str] | None,
        typer.Option("--site", help="NAME=FILE of a site's ledger, to hold against the server's.", show_default=False),
    ] = None,
    protocol: Annotated[
        Path | None,
        typer.Option("--protocol", help="federation.yaml: its public keys must have signed.", show_default=False),
    ] = None,
) -> None:
    """Find every line that was changed, removed, moved or added, and what the parties' ledgers do not state alike."""
    from mil.hospital.config import read_federation
    from mil.hospital.crosscheck import cross_check
    from mil.hospital.record import author, read_record

    if not site_records:
        lines = read_record(record)
        actor, key = author(lines)
        typer.echo(f"{record}: {len(lines)} lines, unbroken, signed by {actor} with key {key[:16]}")
        return
    named = {name: Path(path) for name, _, path in (pair.partition("=") for pair in site_records)}
    if Path() in named.values():
        raise MilError(f"--site {site_records[0]!r}: write it as NAME=FILE")
    if len(named) < len(site_records):
        twice = next(name for name in named if sum(pair.startswith(f"{name}=") for pair in site_records) > 1)
        raise MilError(f"--site: {twice} is given twice; give each site's ledger once")
    agreed = read_federation(protocol) if protocol is not None else None
    keys = {**{site: party.key for site, party in agreed.sites.items()}, "server": agreed.server.key} if agreed else {}
    agreement = cross_check(record, named, keys)
    if agreement.faults:
        raise MilError(f"{len(agreement.faults)} disagreements; the first: {agreement.faults[0]}")
    typer.echo(
        f"{agreement.answers} answers agree; lines: {', '.join(f'{who} {count}' for who, count in agreement.lines.items())}"
    )
    if agreement.absent:
        typer.echo(f"not compared: {'; '.join(agreement.absent)}")
