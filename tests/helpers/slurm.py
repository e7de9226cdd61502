"""A Slurm of one's own: a controller and two nodes on this machine, in one folder, on free ports."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.helpers.waiting import wait

#: Where Debian has daemons.
PATH = f"{os.environ['PATH']}:/usr/sbin"
NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "srun", "munged")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={0}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=5
JobRequeue=1
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={1} CPUs=1 State=UNKNOWN
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={2} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that are not here."""
    return [name for name in NEEDED if shutil.which(name, path=PATH) is None]


class Slurm:
    """Starts the daemons in a folder and ends them; their paths of sockets have to be short."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        ports = [free_port() for _ in range(3)]
        text = CONFIGURATION.format(*ports, folder=folder, user=getpass.getuser())
        (folder / "slurm.conf").write_text(text)
        for name in ("state", "spool-one", "spool-two"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
        places = [f"--{option}={folder / name}" for option, name in {"key-file": key.name, **names}.items()]
        self._daemons = [self._start("munged", "--foreground", "--force", *places)]
        wait(lambda: (folder / "munge.socket").exists())
        self._daemons.append(self._start("slurmctld", "-D"))
        self._daemons += [self._start("slurmd", "-D", "-N", name) for name in ("one", "two")]
        wait(lambda: self.call("sinfo", "-h", "-o", "%t").split() == ["idle"])

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}-{command[-1]}.log".replace("/", "-")[-80:]).open("w") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        words = self.call("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def close(self) -> None:
        """End the daemons, those that need the others first."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(timeout=60)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ended(slurm: Slurm, number: str) -> bool:
    """Whether a job is over; a pause, as each look is a process."""
    time.sleep(0.2)
    return slurm.job(number).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
