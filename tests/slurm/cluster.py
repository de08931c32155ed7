"""A real Slurm cluster of several hosts on one Linux machine, for tests: each with its own network, name and processes.

    with Cluster(tmp_path, nodes=2) as cluster:
        job = cluster.sbatch("slurm/pretrain.sh", "x.yaml", cwd=repository)
        cluster.wait(job, "RUNNING")
        cluster.power_off("n2")                         # every process of the host is gone at once
        assert cluster.wait(job, "COMPLETED")["Restarts"] == "1"

A host is a ``slurmd`` in network, host-name, mount, IPC and process namespaces of its own, and its address is on a bridge that
lives in one more network namespace. The file system is the machine's and plays the cluster's shared one. ``slurmctld`` runs in
the machine's own network and listens on the bridge only, so that the commands of an ordinary shell reach it.

It needs root, namespaces and Debian's Slurm packages (``missing`` says what is lacking), no systemd and no accounting database.
Whatever happens to the process that made it, nothing outlives it: each daemon asks the kernel to be killed with its parent.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "ip", "nsenter", "unshare", "setpriv", "pgrep")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
REQUEUE_SECONDS = 5
"""How long a requeued job must wait: the life of its credential, two minutes by default; less than 5 is refused."""

_CONF = """
ClusterName={name}
SlurmctldHost=controller({machine})
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_seconds}
# The controller listens on the address of its own name; commands on the machine go on listening everywhere.
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Nothing here needs cgroups: processes are found by their parents, cores are not pinned, memory is not enforced.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
# Hosts may claim more cores and memory than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# A host that was merely silent comes back by itself. One that restarted does not, so that its jobs are seen to be lost.
ReturnToService=1
SlurmdTimeout={silence_seconds}
KillWait=10
JobRequeue=1
MinJobAge=86400
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""

_HOST = """
set -eu
hostname "$1"
mount --bind "$3/hosts" /etc/hosts
mkdir -p /etc/slurm && mount --bind "$3" /etc/slurm
mount -t tmpfs -o size=50% shm /dev/shm
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$2/24" dev eth0
ip link set eth0 up
slurmd $4 -f "$3/slurm.conf"
while :; do sleep 3600 & wait $! || true; done
"""
"""Life of a host: its name, its files, its network, its daemon; then it adopts orphans, as process 1 does."""


def missing() -> str | None:
    """Why no cluster can be made on this machine, or None."""
    if os.geteuid() != 0:
        return "a cluster of namespaces needs root"
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if lacking:
        return f"not installed: {', '.join(lacking)}; make test-slurm installs them on Debian and Ubuntu"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """A running cluster; a context manager. Hosts are called n1, n2, ..."""

    def __init__(
        self, folder: Path, *, nodes: int, cpus: int = 8, memory: int = 16_000, gpus: int = 2, silence: int = 20
    ) -> None:
        """``folder`` takes all state and logs. ``silence``: seconds without an answer after which a host is given up."""
        self.folder, self.cpus, self.memory, self.gpus, self.silence = folder.absolute(), cpus, memory, gpus, silence
        number = os.getpid() % 200 + 20
        self.name, self._net = f"us{number}", f"10.{number}.7"
        self.nodes = tuple(f"n{i + 1}" for i in range(nodes))
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self._write_files()
        try:
            self._start()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    # ---- what a user of the cluster does ----

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables of a login shell on this cluster."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PYTEST_"))}
        return {**clean, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf"), **(extra or {})}

    def command(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a Slurm command and return what it prints.

        Raises:
            AssertionError: it failed; with its messages.
        """
        done = subprocess.run(words, cwd=cwd, env=self.environment(env), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *words: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Submit; returns the job's id."""
        return self.command("sbatch", "--parsable", *words, cwd=cwd, env=env).strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job."""
        text = self.command("scontrol", "-o", "show", "job", job).splitlines()[0]
        return dict(re.findall(r"(\w\S*?)=(.*?)(?=\s+\w\S*?=|\s*$)", text))

    def wait(self, job: str, *states: str, seconds: float = 180, restarts: int | None = None) -> dict[str, str]:
        """Wait until the job is in one of ``states`` (for the ``restarts``-th time), and return what it is then.

        Raises:
            AssertionError: it ended in another state, or did not get there in time; with the end of its output.
        """
        seen: dict[str, str] = {}

        def there() -> bool:
            seen.update(self.job(job))
            state, started = seen["JobState"], int(seen["Restarts"])
            if restarts is not None and started < restarts:
                return False
            assert state in states or state not in ENDED or "Requeue" in seen["Reason"], self.story(job, f"wanted {states}")
            return state in states

        assert self._until(seconds, there, pause=0.2), self.story(job, f"no {states} within {seconds} s")
        return seen

    def output(self, job: str) -> str:
        """What the job printed so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def story(self, job: str, what: str) -> str:
        """For messages: the job's state and the end of its output."""
        seen = self.job(job)
        keys = ("JobState", "Reason", "Restarts", "ExitCode", "NodeList")
        return f"job {job}: {what}; { ({key: seen.get(key) for key in keys}) }\n" + self.output(job)[-4000:]

    # ---- what happens to the hosts ----

    def power_off(self, node: str) -> None:
        """The host is gone: daemon, tasks, network."""
        process = self._running.pop(node)
        process.kill()
        process.wait()

    def power_on(self, node: str) -> None:
        """The host starts again and is returned to service."""
        before = time.strftime("%Y-%m-%dT%H:%M:%S")
        self._start_host(node, restarted=True)
        # A host that is resumed before it has reported would be found to have restarted, and be down again.
        assert self._until(30, lambda: self._field(node, "SlurmdStartTime") >= before), self._log(node)

        def in_service() -> bool:
            state = self._state(node)
            if "DOWN" in state:  # as an operator would say, again where the controller only now notices the restart
                self.command("scontrol", "update", f"nodename={node}", "state=resume")
            return state in ("IDLE", "MIXED", "ALLOCATED")

        assert self._until(30, in_service, pause=0.5), self._state(node)

    def unplug(self, node: str) -> None:
        """The host's cable is pulled: its processes live on, unseen."""
        self._in_switch("ip", "link", "set", node, "down")

    def plug(self, node: str) -> None:
        """The cable is back."""
        self._in_switch("ip", "link", "set", node, "up")

    def kill_daemon(self, node: str) -> None:
        """The host's slurmd dies; the tasks it started live on."""
        self.inside(node, "pkill", "-KILL", "-x", "slurmd")

    def inside(self, node: str, *words: str) -> str:
        """Run a command on a host."""
        first = self._first_process(node)
        return self._run("nsenter", "-t", first, "-m", "-u", "-i", "-n", "-p", "--", *words)

    def declare_down(self, node: str) -> None:
        """Tell the controller what it would find out by itself after ``silence`` seconds, or twice that."""
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    # ---- how it is made ----

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(exist_ok=True)
        addresses = {node: f"{self._net}.{i + 1}" for i, node in enumerate(self.nodes)}
        hosts = {"localhost": "127.0.0.1", "controller": self.machine, **addresses}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        # A GPU record without a device file is ignored, and what it names must look like a device.
        for gpu in range(self.gpus):
            (self.folder / f"gpu{gpu}").symlink_to("/dev/null")
        devices = f"Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        (self.folder / "gres.conf").write_text("AutoDetect=off\n" + devices)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(
            _CONF.format(
                name=self.name,
                machine=self.machine,
                folder=self.folder,
                requeue_seconds=REQUEUE_SECONDS,
                silence_seconds=self.silence,
                cpus=self.cpus,
                memory=self.memory,
                gpus=self.gpus,
                nodes="\n".join(f"NodeName={node} NodeAddr={address}" for node, address in addresses.items()),
            )
        )

    @property
    def machine(self) -> str:
        """The address by which hosts reach the machine, and nothing beyond it."""
        return f"{self._net}.254"

    def _start(self) -> None:
        device = f"{self.name}0"
        # The bridge is in a namespace of its own, out of the way of the machine's packet filters.
        make = "ip link add bridge type bridge && ip link set bridge up && exec sleep infinity"
        self._spawn("switch", "unshare", "--net", "bash", "-c", make)
        assert self._until(10, lambda: self._works(lambda: self._in_switch("ip", "link", "show", "bridge"))), self._log(
            "switch"
        )
        self._run(
            "ip", "link", "add", device, "type", "veth", "peer", "name", "machine", "netns", str(self._running["switch"].pid)
        )
        self._in_switch("ip", "link", "set", "machine", "master", "bridge", "up")
        self._run("ip", "addr", "add", f"{self.machine}/24", "dev", device)
        self._run("ip", "link", "set", device, "up")
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        options = [f"--{option}={self.folder / name}" for option, name in {**files, "seed-file": "munged.seed"}.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *options)
        assert self._until(10, (self.folder / "munge.socket").exists), self._log("munged")
        mounts = f"mount --bind {self.folder}/hosts /etc/hosts"
        named = f"hostname controller; {mounts}; exec slurmctld -D -i -f {self.folder}/slurm.conf"
        self._spawn("slurmctld", "unshare", "--uts", "--mount", "--propagation", "private", "bash", "-c", named)
        assert self._until(20, lambda: self._works(lambda: self.command("scontrol", "ping"))), self._log("slurmctld")
        for node in self.nodes:
            self._start_host(node)
        assert self._until(30, lambda: all(self._state(node) == "IDLE" for node in self.nodes)), self.command(
            "sinfo", "-N", "-l"
        )

    def _start_host(self, node: str, restarted: bool = False) -> None:
        address = f"{self._net}.{node[1:]}"
        own = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
        life = ("bash", "-c", _HOST, "host", node, address, str(self.folder), "-b" if restarted else "")
        self._spawn(node, "unshare", *own, "--propagation", "private", *life)
        assert self._until(10, lambda: self._works(lambda: self._first_process(node))), self._log(node)
        self._works(lambda: self._in_switch("ip", "link", "del", node))
        self._in_switch("ip", "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", self._first_process(node))
        self._in_switch("ip", "link", "set", node, "master", "bridge", "up")

    def down(self) -> None:
        """End everything; also after a start that failed half-way."""
        for name in [*self.nodes, "slurmctld", "munged"]:
            process = self._running.pop(name, None)
            if process is not None:
                process.kill()
                process.wait()
        self._works(lambda: self._run("ip", "link", "del", f"{self.name}0"))
        if switch := self._running.pop("switch", None):
            switch.kill()
            switch.wait()

    def _spawn(self, name: str, *words: str) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        self._running[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *words],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _state(self, node: str) -> str:
        return self._field(node, "State")

    def _field(self, node: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self.command("scontrol", "-o", "show", "node", node))
        return found.group(1) if found else ""

    def _first_process(self, node: str) -> str:
        return self._run("pgrep", "-P", str(self._running[node].pid)).split()[0]

    def _in_switch(self, *words: str) -> str:
        return self._run("nsenter", "-t", str(self._running["switch"].pid), "-n", "--", *words)

    def _run(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _log(self, name: str) -> str:
        return f"{name} did not start:\n" + (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]

    @staticmethod
    def _works(action: Callable[[], Any]) -> bool:
        try:
            action()
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return True

    @staticmethod
    def _until(seconds: float, condition: Callable[[], bool], pause: float = 0.1) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
        return True
