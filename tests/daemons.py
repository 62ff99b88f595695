"""Starts what tests and demo need where no init runs: virtlogd, libvirtd, munged. Stops what it started, by pid."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return once the condition holds; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.02)


def answers(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


class Daemons:
    """Processes of ours. stop() ends them newest first, by pid."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, env: dict[str, str] | None = None, user: int | None = None) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        self.children.append(child)
        return child

    def stop(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.children.clear()


def libvirt(daemons: Daemons) -> None:
    """Make qemu:///system answer. Where no udev runs, /dev/kvm also gets the owner that udev gives it."""
    kvm = Path("/dev/kvm")
    if kvm.exists() and not Path("/run/udev").exists():
        shutil.chown(kvm, "root", "kvm")  # or libvirt probes QEMU anew (4 s) at every start of a guest
        kvm.chmod(0o660)
    if answers("virsh", "-c", "qemu:///system", "version"):
        return
    daemons.start("/usr/sbin/virtlogd")
    daemons.start("/usr/sbin/libvirtd")
    wait_for(lambda: answers("virsh", "-c", "qemu:///system", "version"), 60, "libvirtd's start")


def munge(daemons: Daemons) -> None:
    if answers("munge", "-n"):
        return
    run = Path("/run/munge")
    run.mkdir(mode=0o755, exist_ok=True)
    shutil.chown(run, "munge", "munge")
    uid = run.stat().st_uid
    daemons.start("/usr/sbin/munged", "--foreground", user=uid)
    wait_for(lambda: answers("munge", "-n"), 30, "munged's start")
