#!/usr/bin/env python3
"""A real Slurm on this host alone, for tests: accounting, two partitions, pretended GPUs.

    tests/slurm/cluster.py start     # as root, on Debian; installs what is missing
    tests/slurm/cluster.py status
    tests/slurm/cluster.py stop

No systemd is needed. The nodes are slurmd processes: cpu1 in the partition `cpu`; gpu1, gpu2 and
gpu3 in `gpu`, and in `urgent`, whose jobs pre-empt and requeue those of `gpu`. Their GPUs are links
to /dev/null, which Slurm counts and hands out like real ones. The daemons' configuration has to be
in /etc/slurm; one that this script did not write is left alone, and nothing starts.
"""

import argparse
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STATE = Path("/var/tmp/sgdphases-slurm")
CONFIGURATION = Path("/etc/slurm")
MARK = "# Written by tests/slurm/cluster.py of sgd-phases, which replaces and removes it."
PACKAGES = ["slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server", "tini"]
PROGRAMS = ["slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "tini"]
# Slurm takes the numbers it is told for the machine's.
CPUS_OF_NODE, MEGABYTES_OF_NODE = 16, 512_000
# GPUs of each node.
NODES = {"cpu1": 0, "gpu1": 1, "gpu2": 1, "gpu3": 3}
FIRST_PORT = 17_001
DATABASE_PORT = 17_306


class ClusterError(Exception):
    """The cluster cannot be started; the message says why."""


def missing_requirement() -> str | None:
    """Why there can be no cluster here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of one's own needs root on Linux"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"Slurm is not installed: {', '.join(missing)} missing"
    for path in configuration_files():
        if MARK not in path.read_text():
            return f"{path} is of another Slurm"
    return None


def configuration_files() -> list[Path]:
    """What there is of the files that this script writes."""
    names = ("slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf")
    return [path for name in names if (path := CONFIGURATION / name).exists()]


def install() -> None:
    """Install what is missing from Debian's packages."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    if all(map(shutil.which, PROGRAMS)):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def start() -> None:
    """Start everything and wait until every node is idle.

    Raises:
        ClusterError: Something is missing, or a daemon does not come up.
    """
    if reason := missing_requirement():
        raise ClusterError(reason)
    stop()
    for folder in ("log", "run", "spool", "ctld", "devices"):
        (STATE / folder).mkdir(parents=True, exist_ok=True)
    for node, gpus in NODES.items():
        for index in range(gpus):
            (STATE / "devices" / f"{node}-gpu{index}").symlink_to("/dev/null")
    write_configuration()
    start_munge()
    start_database()
    launch("slurmdbd", ["slurmdbd", "-D"])
    wait_for(lambda: succeeds("sacctmgr", "-n", "show", "cluster"), "slurmdbd")
    subprocess.run(
        ["sacctmgr", "-i", "add", "cluster", "sgdphases"], check=False, capture_output=True
    )
    launch("slurmctld", ["slurmctld", "-D", "-c"])
    for node in NODES:
        start_node(node)
    wait_for(lambda: set(node_states().values()) == {"idle"}, "the nodes")


def start_node(node: str) -> None:
    """Start the slurmd of a node; as the first process of its kind it reaps what is left over."""
    launch(f"slurmd-{node}", ["tini", "-s", "--", "slurmd", "-D", "-N", node])


def kill_node(node: str) -> None:
    """Kill the slurmd of a node, as a crash would; the steps of its jobs live on."""
    pids = recorded()
    # slurmd is the child of tini, which would otherwise pass on nothing of a SIGKILL.
    children = Path(f"/proc/{pids[f'slurmd-{node}']}/task/{pids[f'slurmd-{node}']}/children")
    for pid in children.read_text().split():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
            os.kill(int(pid), signal.SIGKILL)


def node_states() -> dict[str, str]:
    """State of each node; empty where slurmctld does not answer."""
    shown = run("sinfo", "--noheader", "--Node", "--format=%N %T")
    return dict(line.split() for line in shown.splitlines())


def stop() -> None:
    """Cancel the jobs, stop the daemons that were started here, and remove their files."""
    pids = recorded()
    if pids:
        run("scancel", "--user=root")
    for name in reversed(list(pids)):
        end(pids[name], name)
    for path in configuration_files():
        if MARK in path.read_text():
            path.unlink()
    shutil.rmtree(STATE, ignore_errors=True)


def write_configuration() -> None:
    """Write /etc/slurm."""
    host = socket.gethostname().split(".")[0]
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={FIRST_PORT + 1 + i} "
        f"CPUs={CPUS_OF_NODE} RealMemory={MEGABYTES_OF_NODE} State=UNKNOWN"
        + (f" Gres=gpu:{gpus}" if gpus else "")
        for i, (node, gpus) in enumerate(NODES.items())
    ]
    version = run("slurmd", "-V").split()[1].split(".")
    without_groups = "disabled" if (int(version[0]), int(version[1])) >= (24, 5) else "cgroup/v1"
    write("slurm.conf", SLURM.format(host=host, state=STATE, nodes="\n".join(nodes)))
    write("cgroup.conf", f"CgroupPlugin={without_groups}\n")
    write(
        "gres.conf",
        "".join(
            f"NodeName={node} Name=gpu File={STATE}/devices/{node}-gpu{i}\n"
            for node, gpus in NODES.items()
            for i in range(gpus)
        ),
    )
    write("slurmdbd.conf", SLURMDBD.format(host=host, state=STATE), mode=0o600)


SLURM = f"""\
ClusterName=sgdphases
SlurmctldHost={{host}}(127.0.0.1)
SlurmctldPort={FIRST_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={{state}}/ctld
SlurmdSpoolDir={{state}}/spool/%n
SlurmctldPidFile={{state}}/run/slurmctld.pid
SlurmdPidFile={{state}}/run/slurmd-%n.pid
SlurmctldLogFile={{state}}/log/slurmctld.log
SlurmdLogFile={{state}}/log/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
ReturnToService=2
MinJobAge=3600
KillWait=10
SlurmdTimeout=15
SlurmctldTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={FIRST_PORT + 90}
AccountingStorageTRES=gres/gpu
{{nodes}}
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=UNLIMITED PriorityTier=1
PartitionName=gpu Nodes=gpu[1-3] MaxTime=UNLIMITED PriorityTier=1
PartitionName=urgent Nodes=gpu[1-3] MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD = f"""\
DbdHost={{host}}
DbdAddr=127.0.0.1
DbdPort={FIRST_PORT + 90}
SlurmUser=root
AuthType=auth/munge
PidFile={{state}}/run/slurmdbd.pid
LogFile={{state}}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def start_munge() -> None:
    """Start munge, which tells Slurm's daemons who is who, unless one answers already."""
    if succeeds("sh", "-c", "munge -n | unmunge"):
        return
    owner = pwd.getpwnam("munge")
    folder = Path("/run/munge")
    folder.mkdir(mode=0o755, exist_ok=True)
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    if not Path("/etc/munge/munge.key").exists():
        subprocess.run(["mungekey", "--create"], check=True)
    launch("munged", ["munged", "--foreground"], user="munge")
    wait_for(lambda: succeeds("sh", "-c", "munge -n | unmunge"), "munged")


def start_database() -> None:
    """Start a database of its own for the accounting."""
    data, connection = STATE / "database", STATE / "run" / "mariadb.sock"
    subprocess.run(
        [
            *("mariadb-install-db", f"--datadir={data}", "--user=root", "--skip-test-db"),
            "--auth-root-authentication-method=socket",
        ],
        check=True,
        capture_output=True,
    )
    launch(
        "mariadbd",
        [
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
            *(f"--socket={connection}", f"--pid-file={STATE}/run/mariadb.pid"),
            *(f"--port={DATABASE_PORT}", "--bind-address=127.0.0.1"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
            "--innodb-buffer-pool-size=64M",
        ],
    )
    client = ["mariadb", "--no-defaults", f"--socket={connection}", "--user=root"]
    wait_for(lambda: succeeds(*client, "--execute=SELECT 1"), "mariadbd")
    grant = (
        "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; "
        "CREATE USER slurm@localhost IDENTIFIED BY 'slurm'; "
        "GRANT ALL ON slurm.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm.* TO slurm@localhost;"
    )
    subprocess.run([*client, f"--execute={grant}"], check=True)


def launch(name: str, command: Sequence[str], user: str | None = None) -> None:
    """Start a daemon in a session of its own, and record its process."""
    with (STATE / "log" / f"{name}.out").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user,
            cwd="/",
        )
    processes = {**recorded(), name: process.pid}
    (STATE / "processes.json").write_text(json.dumps(processes))


def recorded() -> dict[str, int]:
    """Processes that were started here, by name, in the order of their start."""
    path = STATE / "processes.json"
    return json.loads(path.read_text()) if path.exists() else {}


def end(pid: int, name: str) -> None:
    """End a recorded process, unless its number belongs to another one by now."""
    program = name.split("-")[0]
    known = {program, "tini"} if program == "slurmd" else {program}

    def is_alive() -> bool:
        # A finished child of this process stays until it is waited for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip() in known
        except OSError:
            return False

    for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if not is_alive():
            return
        os.kill(pid, number)
        until = time.monotonic() + seconds
        while is_alive() and time.monotonic() < until:
            time.sleep(0.05)


def run(*command: str) -> str:
    """Standard output of a command; empty where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def succeeds(*command: str) -> bool:
    """Whether a command ends well."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds.

    Raises:
        ClusterError: It does not within the time.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise ClusterError(f"{what} did not come up in {seconds:g} s; see {STATE}/log")
        time.sleep(0.1)


def write(name: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the configuration."""
    CONFIGURATION.mkdir(exist_ok=True)
    path = CONFIGURATION / name
    path.write_text(f"{MARK}\n{text}")
    path.chmod(mode)


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["install", "start", "status", "stop"])
    command = parser.parse_args().command
    try:
        if command in ("install", "start"):
            install()
        if command == "start":
            start()
        if command == "stop":
            stop()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for node, state in node_states().items() if command in ("start", "status") else ():
        print(node, state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
