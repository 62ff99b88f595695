"""What the benchmarks measure with: a real Slurm's jobs, the installed hooks as slurmd calls them, and bare libvirt."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import libvirt
from slurmcluster import CLUSTER
from slurmsite import SlurmSite

from vmbatch import domain, lifecycle
from vmbatch.journal import Journal
from vmbatch.model import Guest
from vmbatch.teardown import qemu

libvirt.registerErrorHandler(lambda context, error: None, None)


_WATCH = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_mib(*argv: str, **options: Any) -> float:
    """Run a program; return its peak memory. Started by a small process: Linux counts the starter's memory too."""
    watch = [sys.executable, "-I", "-S", "-c", _WATCH, *argv]
    done = subprocess.run(watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, **options)
    return int(done.stdout.split()[-1]) / 1024


class Ended:
    """A process of ours that has ended, and its seconds."""

    def __init__(self, child: "subprocess.Popen[Any]", began: float) -> None:
        _, status = os.waitpid(child.pid, 0)
        self.seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, f"{child.args} ended with {child.returncode}"


class Bench:
    """A Slurm with jobs that only hold their allocation; hooks and shells are called for them by hand."""

    def __init__(self, slurm: SlurmSite, owner: pwd.struct_passwd) -> None:
        self.slurm, self.owner = slurm, owner
        self.work = slurm.folder(owner)
        self.hooks = slurm.site.folder / "usr" / "libexec" / "vmbatch" / "slurm"
        self.shell = slurm.site.folder / "usr" / "bin" / "vmbatch-remoteshell"

    def job(self, memory_mib: int = 300) -> "Held":
        script = "#!/bin/sh\nsleep 100000\n"
        number = self.slurm.cluster.submit(script, f"--mem={memory_mib}", "-n1", user=self.owner.pw_uid, cwd=self.work)
        self.slurm.cluster.wait(number, "RUNNING")
        return Held(self, number, self.slurm.cluster.job(number)["NodeList"])


class Held:
    """One job, and what happens on its node."""

    def __init__(self, bench: Bench, number: str, node: str) -> None:
        self.bench, self.number = bench, number
        owner = bench.owner
        self.environment = {
            "SLURM_JOB_ID": number,
            "SLURM_JOB_UID": str(owner.pw_uid),
            "SLURM_JOB_GID": str(owner.pw_gid),
            "SLURM_JOB_USER": owner.pw_name,
            "SLURM_JOB_WORK_DIR": str(bench.work),
            "SLURM_CLUSTER_NAME": CLUSTER,
            "SLURMD_NODENAME": node,
        }
        self.key = f"slurm-{CLUSTER}-{node}-{number}"

    def hook(self, name: str, request: str = "tiny:in=none") -> "subprocess.Popen[bytes]":
        return subprocess.Popen([str(self.bench.hooks / name)], env=self.asked(request), stderr=subprocess.DEVNULL)

    def asked(self, request: str = "tiny:in=none") -> dict[str, str]:
        return {**self.environment, **({"SPANK_VMBATCH_VM": request} if request else {})}

    def timed(self, name: str, request: str = "tiny:in=none") -> Ended:
        began = time.monotonic()
        return Ended(self.hook(name, request), began)

    def remoteshell(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([str(self.bench.shell), *words], stdout=subprocess.PIPE, **self.as_job())

    def as_job(self) -> dict[str, Any]:
        """How slurmstepd starts a process of the job."""
        owner = self.bench.owner
        environment = {**self.environment, "PATH": "/usr/bin:/bin", "HOME": owner.pw_dir}
        ids = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        return {"env": environment, "cwd": self.bench.work, "stdin": subprocess.DEVNULL, **ids}

    def guest(self) -> Guest:
        found = lifecycle.read_guest(Journal.unended(self.bench.slurm.site.folder / "state", self.key)[-1])
        assert found is not None
        return found

    def pause(self) -> None:
        """Stop the guest's QEMU in its tracks."""
        for who in qemu(self.guest().uuid):
            os.kill(who.pid, signal.SIGSTOP)


class Bare:
    """The same guest by hand: libvirt gets the XML that a prologue made, with the same disks and network."""

    def __init__(self, held: Held, request: str = "tiny:in=none") -> None:
        site = held.bench.slurm.site
        site.configure(testing={"failpoint": "step:boot:kill"})
        held.hook("prolog", request).wait()
        site.configure()
        self.guest = held.guest()
        self.connection = libvirt.open("qemu:///system")
        journal = Journal.unended(site.folder / "state", held.key)[-1]
        self.xml = (journal.directory / "domain.xml").read_text()
        self.destroy()
        self.kept = site.folder / f"kept-{held.number}"
        self.kept.mkdir()
        self.files = [self.guest.iso, *(p for p in (self.guest.job_kernel, self.guest.job_initrd) if p)]
        for file in self.files:
            shutil.copy(file, self.kept / file.name)

    def lay_out(self) -> None:
        """Put fresh disks where the XML wants them (not measured)."""
        for file in self.files:
            shutil.copy(self.kept / file.name, file)
        for disk in self.guest.disks:
            disk.file.unlink(missing_ok=True)
            words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.base_format, "-b", disk.base, disk.file]
            subprocess.run([str(word) for word in words], check=True)

    def create(self) -> None:
        live = self.connection.createXML(self.xml)
        self.listener = socket.socket(socket.AF_UNIX)  # the guest's reports wait until somebody listens
        self.listener.connect(str(domain.ready_socket(live.XMLDesc())))

    def answer(self, timeout_s: float = 240) -> None:
        """Return at the first answer by ssh, polled every 20 ms."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection((self.guest.nic.ssh_host, self.guest.nic.ssh_port), 0.5):
                if subprocess.run(self.ssh("true"), stderr=subprocess.DEVNULL, check=False).returncode == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("the bare guest does not answer")

    def ssh(self, *words: str) -> list[str]:
        alone = ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
        return ["ssh", "-F", str(self.guest.run_dir / "ssh_config"), *alone, "guest", *words]

    def start(self) -> float:
        """Create the guest and wait for it; returns seconds."""
        self.lay_out()
        began = time.monotonic()
        self.create()
        self.answer()
        return time.monotonic() - began

    def destroy(self) -> float:
        """virsh destroy; returns seconds."""
        began = time.monotonic()
        words = ["virsh", "-q", "-c", "qemu:///system", "destroy", self.guest.name]
        subprocess.run(words, check=False, capture_output=True)
        seconds = time.monotonic() - began
        for who in qemu(self.guest.uuid):
            os.kill(who.pid, signal.SIGKILL)
        return seconds

    def pause(self) -> None:
        for who in qemu(self.guest.uuid):
            os.kill(who.pid, signal.SIGSTOP)
