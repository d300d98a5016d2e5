"""A real Slurm of one node on the loopback interface, without systemd: munged, slurmctld, slurmd; slurmdbd and MariaDB for accounts.

Needs root and Debian's slurm-wlm and munge (slurmdbd and mariadb-server for accounts). Slurm's programs read /etc/slurm/slurm.conf:
Snakemake takes SLURM_CONF away from its jobs. So there is one such Slurm per machine, and a machine with a Slurm of its own is refused.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")  # where clients look
HOST = socket.gethostname().partition(".")[0]
DATABASE_PORT, ACCOUNTS_PORT, CONTROLLER_PORT, NODE_PORT = 13306, 16819, 16817, 16818

SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=15
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=5
CompleteWait=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={node}
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL Default=NO PriorityTier=9 MaxTime=INFINITE State=UP
"""

ACCOUNTS = """
AuthType=auth/munge
DbdHost=localhost
DbdPort={accounts}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
"""


def missing(accounting: bool = False) -> str:
    """Why a Slurm cannot be started here, '' where it can."""
    needed = ["munged", "slurmctld", "slurmd", "sbatch", *(["slurmdbd", "mariadbd"] if accounting else [])]
    lacking = [name for name in needed if shutil.which(name) is None]
    if os.geteuid():
        return "only root can start munged, slurmctld and slurmd"
    if lacking:
        return f"{', '.join(lacking)} not installed: apt-get install slurm-wlm munge slurmdbd mariadb-server"
    if (CONFIGURATION / "slurm.conf").exists():
        return f"{CONFIGURATION}/slurm.conf exists: this machine belongs to a Slurm"
    return ""


class OneNodeSlurm:
    """Started with `with`; stopped, and its configuration removed, at the end."""

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder, self.accounting = folder, accounting
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> "OneNodeSlurm":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if (CONFIGURATION / "slurm.conf").exists():
            self.say("scancel", "--user=root", check=False)
            self.wait(lambda: not self.say("squeue", "--noheader", check=False), seconds=20, needed=False)
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        # Snakemake may hang after a SIGTERM, and Slurm without cgroups loses sight of it.
        for pid in _of_jobs(self.folder.parent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in [*(CONFIGURATION / name for name in ("slurm.conf", "cgroup.conf", "slurmdbd.conf")), MUNGE_SOCKET]:
            path.unlink(missing_ok=True)

    def _start(self) -> None:
        for name in ("state", "spool", "munge", "database"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        self._munge()
        ports = {"accounts": ACCOUNTS_PORT, "database": DATABASE_PORT, "controller": CONTROLLER_PORT, "node": NODE_PORT}
        plain = "AccountingStorageType=accounting_storage/none"
        stored = f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\nAccountingStoragePort={ACCOUNTS_PORT}"
        names = {"folder": self.folder, "host": HOST, "accounting": stored if self.accounting else plain, **ports}
        CONFIGURATION.mkdir(exist_ok=True)
        (CONFIGURATION / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (CONFIGURATION / "slurm.conf").write_text(SLURM.format(**names))
        if self.accounting:
            self._accounts(ACCOUNTS.format(**names))
        self._run("slurmctld", "-i", "-D")
        self.start_node()

    def _munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o711)
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._run("munged", "--foreground", "--force", f"--log-file={self.folder}/munged.log", *options)
        MUNGE_SOCKET.parent.mkdir(parents=True, exist_ok=True)
        MUNGE_SOCKET.unlink(missing_ok=True)
        MUNGE_SOCKET.symlink_to(folder / "socket")
        self.wait(lambda: (folder / "socket").exists())

    def _accounts(self, configuration: str) -> None:
        """MariaDB and slurmdbd, with the cluster in it; root is in every account database."""
        data, socket_path = self.folder / "database", self.folder / "database.sock"
        self.say("mariadb-install-db", "--user=root", f"--datadir={data}", "--auth-root-authentication-method=normal")
        options = [
            f"--datadir={data}",
            f"--socket={socket_path}",
            f"--port={DATABASE_PORT}",
            "--bind-address=127.0.0.1",
        ]
        self._run("mariadbd", "--no-defaults", "--user=root", f"--pid-file={self.folder}/database.pid", *options)
        self.wait(socket_path.exists)
        # slurmdbd makes its database itself, and then cannot use that connection with Debian's libmariadb3 11.8.9.
        orders = ["CREATE DATABASE slurm_acct_db"]
        orders += [f"GRANT ALL ON *.* TO slurm@'{host}' IDENTIFIED BY 'slurm'" for host in ("127.0.0.1", "localhost")]
        connection = ["--no-defaults", f"--socket={socket_path}", "--user=root"]
        self.say("mariadb", *connection, "--execute", "; ".join(orders))
        (CONFIGURATION / "slurmdbd.conf").write_text(configuration)
        (CONFIGURATION / "slurmdbd.conf").chmod(0o600)
        self._run("slurmdbd", "-D")
        self.wait(lambda: self.say("sacctmgr", "--noheader", "show", "cluster", check=False) is not None)
        self.say("sacctmgr", "--immediate", "add", "cluster", "test", check=False)

    def start_node(self) -> None:
        """Start slurmd, and wait until its node takes jobs."""
        self.node = self._run("slurmd", "-D")
        self.wait(
            lambda: (
                (self.say("sinfo", "--noheader", "--format=%T", check=False) or "") in ("idle", "mixed", "allocated")
            )
        )

    def fail_node(self) -> None:
        """Kill slurmd and all that it started, as a loss of power does, and wait until Slurm takes the node for down."""
        for pid in [self.node.pid, *_descendants_of("slurmstepd")]:
            os.kill(pid, signal.SIGKILL)
        self.node.wait()
        self.processes.remove(self.node)
        self.wait(lambda: "down" in (self.say("sinfo", "--noheader", "--format=%T") or ""), seconds=60)

    def _run(self, *command: str) -> subprocess.Popen:
        with open(self.folder / f"{command[0]}.out", "ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.processes.append(process)
        return process

    def say(self, *command: str, check: bool = True) -> str | None:
        """What a command printed, stripped; none where it failed and need not succeed."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode and check:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return None if done.returncode else done.stdout.strip()

    def wait(self, condition, seconds: float = 60, needed: bool = True) -> None:
        """Wait until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                if needed:
                    said = "\n".join(
                        path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.[lo][ou][gt]")
                    )
                    raise TimeoutError(f"Slurm did not come up in {seconds} s:\n{said}")
                return
            time.sleep(0.3)


def _descendants_of(name: str) -> list[int]:
    """Processes of that name that run here, and all below them."""
    parents, named = {}, []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(status.parent.name), status.read_text()
        except OSError:
            continue
        parents.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(pid)
        if rest.partition("(")[2].rpartition(")")[0].startswith(name):
            named.append(pid)
    found, waiting = [], named
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += parents.get(pid, [])
    return list(dict.fromkeys(found))


def _of_jobs(folder: Path) -> list[int]:
    """Processes of jobs that were submitted below `folder`."""
    pids, submitted = [], f"\0SLURM_SUBMIT_DIR={folder}/".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if submitted in b"\0" + path.read_bytes():
                pids.append(int(path.parent.name))
    return pids
