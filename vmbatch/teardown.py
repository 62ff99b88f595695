"""Everything that we can leave on a node, and how to make it not exist. One table; every removal may be repeated."""

import os
import pwd
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbatch import slots
from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.hypervisor import Hypervisor, LibvirtError
from vmbatch.journal import Journal, Thing
from vmbatch.model import Person
from vmbatch.networks import nat
from vmbatch.pids import Identity, find, kill
from vmbatch.process import call_as, locked, run

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Tools:
    """What removals need besides the thing itself."""

    config: Config
    hypervisor: Hypervisor


def teardown(journal: Journal, tools: Tools) -> list[str]:
    """Remove whatever stands, newest first. Returns what could not be removed, as sentences; one failure stops none."""
    failures = []
    for thing in journal.standing():
        try:
            UNDO[thing.kind](thing, tools)
            journal.gone(thing)
        except Exception as error:  # whatever one thing does, the others go
            failures.append(f"{thing.kind} {thing.name} still stands: {error or type(error).__name__}")
    return failures


def _file(thing: Thing, tools: Tools) -> None:
    Path(thing.name).unlink(missing_ok=True)


def _lease(thing: Thing, tools: Tools) -> None:
    file = Path(thing.name)
    with locked(tools.config.paths.state / "leases"):  # others look into the folder meanwhile
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()


def _dir(thing: Thing, tools: Tools) -> None:
    folder = Path(thing.name)
    if folder.is_symlink():
        raise SiteError(f"{folder} has become a symbolic link; it is left alone")
    for _ in range(_TRIES):
        _unmount(folder)
        _close(folder)
        if not folder.exists():
            return
        # rm, since a user may have nested folders deeper than Python can follow
        done = run(["rm", "-rf", "--one-file-system", "--", folder], timeout_s=300, check=False)
        if done.status == 0:
            return
    raise SiteError(f"{folder} cannot be removed: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _unmount(folder: Path) -> None:
    """A user may mount on a folder of his own (FUSE), under any name: proc(5) writes some bytes of it as \\ooo."""
    for line in Path("/proc/self/mounts").read_bytes().split(b"\n"):
        words = line.split(b" ")
        place = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), words[1] if len(words) > 1 else b"")
        if place.startswith(bytes(folder) + b"/"):
            run(["umount", "-l", os.fsdecode(place)], timeout_s=20, check=False)


def _close(folder: Path) -> None:
    """Take every folder below from its owner, or a process of his could fill it as quickly as it is emptied."""
    if os.geteuid() == 0:
        with suppress(OSError, RecursionError):
            for _, _, _, handle in os.fwalk(folder, follow_symlinks=False):
                os.fchown(handle, 0, 0)
                os.fchmod(handle, 0o700)


def _link(thing: Thing, tools: Tools) -> None:
    """The link may lead to a later start of the same job by now: then it stays."""
    link = Path(thing.name)
    if str(thing.data["target"]).startswith("../"):
        with suppress(OSError):
            link.with_name("." + str(thing.data["target"]).removeprefix("../")).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        if os.readlink(link) == thing.data["target"]:
            link.unlink()


def _slot(thing: Thing, tools: Tools) -> None:
    slots.free(tools.config.paths.state / "slots", thing.name)


def _filter(thing: Thing, tools: Tools) -> None:
    nat.remove(str(thing.data["table"]), str(thing.data["card"]), str(thing.data["address"]))


def _domain(thing: Thing, tools: Tools) -> None:
    """Kill QEMU itself first: libvirt's destroy waits long for one that hangs, and libvirt may hang itself."""
    killed = [kill(who) for who in qemu(str(thing.data["uuid"]))]
    try:
        tools.hypervisor.destroy(thing.name)
    except LibvirtError:
        raise
    except SiteError:
        if not all(killed) or qemu(str(thing.data["uuid"])):
            raise
    for card in thing.data.get("cards", ()):  # the kernel takes a dead QEMU's interface away a little later
        _wait(lambda card=card: not Path("/sys/class/net", str(card)).exists())  # type: ignore[misc]


def _wait(gone: Callable[[], bool], limit_s: float = 2.0) -> None:
    deadline = time.monotonic() + limit_s
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.01)


def qemu(uuid: str) -> list[Identity]:
    """Return the QEMU processes of a domain, whatever libvirt says. A user's process that looks like one is none."""
    return [who for who in find("-uuid", uuid) if _owner(who) in _owners()]


def _owner(who: Identity) -> int:
    try:
        return os.stat(f"/proc/{who.pid}").st_uid
    except OSError:
        return -1


def _owners() -> set[int]:
    """The users as whom libvirt runs QEMU: its own as Debian and Red Hat call it, what qemu.conf says, root; else we."""
    if os.geteuid() != 0:
        return {os.geteuid()}
    names = {"libvirt-qemu", "qemu"}
    with suppress(OSError):
        text = Path("/etc/libvirt/qemu.conf").read_text()
        names |= set(re.findall(r'^\s*user\s*=\s*"?\+?([^"\s]+)', text, re.MULTILINE))
    found = {0} | {int(name) for name in names if name.isdecimal()}
    for name in names:
        with suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found


def _ssh(thing: Thing, tools: Tools) -> None:
    """End the ssh connection that the job's shells share, as the user whose it is."""
    control = Path(thing.name)
    folder = control.parent
    try:
        mode = os.lstat(control).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        return
    ids = thing.data["person"]
    person = Person(str(ids[0]), int(ids[1]), int(ids[2]), Path("/"), ((str(ids[0]), int(ids[2])),))
    config = str(folder.parent / "ssh_config")

    def leave() -> None:
        os.execve("/usr/bin/ssh", ["ssh", "-F", config, "-O", "exit", "guest"], {"PATH": "/usr/bin:/bin"})

    call_as(person, _quietly(leave), 5)
    for who in masters(control):
        call_as(person, lambda who=who: _end(who), 5)  # type: ignore[misc]


def masters(control: Path) -> list[Identity]:
    """Return ssh processes that serve this control path; OpenSSH writes it into their title."""
    return find(f"ssh: {control} [mux]")


def _end(who: Identity) -> None:
    kill(who)


def _quietly(function: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        function()

    return run


UNDO: dict[str, Callable[[Thing, Tools], Any]] = {
    "dir": _dir,
    "domain": _domain,
    "file": _file,
    "filter": _filter,
    "lease": _lease,
    "link": _link,
    "slot": _slot,
    "ssh": _ssh,
}
