"""/run/vmbatch/<key>.<n>/: what the job's shell needs. Made by root, read by the job's user.

`state` and `ssh_config` are for everybody to read and hold no secret; `id` is the user's alone; `mux` is the user's own.
"""

import json
import os
from pathlib import Path

from vmbatch import joblink
from vmbatch.config import Config, private_dir
from vmbatch.errors import GuestError, SiteError, UserError, VMBatchError
from vmbatch.journal import Journal
from vmbatch.model import Guest, Job, Person, printable
from vmbatch.pids import Identity
from vmbatch.process import run

_LONGEST = 107 - len("/mux/s.") - 16  # a unix socket's path, and what ssh adds to it while it makes one


def path(config: Config, name: str) -> Path:
    return config.paths.run / name


def make(config: Config, journal: Journal, job: Job) -> Path:
    """Make the folder and the link that leads the job to it."""
    base = config.paths.run
    if config.root:
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
    else:
        private_dir(base.parent if base.parent.name.startswith("vmbatch-runtime") else base)
        base.mkdir(mode=0o700, exist_ok=True)
    (base / "by-job").mkdir(mode=0o755, exist_ok=True)
    folder = path(config, journal.name)
    journal.will("dir", folder)
    folder.mkdir(mode=0o711)
    link = base / "by-job" / joblink.name(job.scheduler, job.cluster, job.node, job.id)
    journal.will("link", link, target=f"../{journal.name}")
    fresh = link.with_name(f".{journal.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(f"../{journal.name}")
    fresh.replace(link)
    return folder


def fill(guest: Guest) -> tuple[str, str, str]:
    """Make the keys and the ssh configuration. Returns client public, host private and host public key."""
    folder, person = guest.run_dir, guest.person
    if len(bytes(folder)) > _LONGEST:
        raise SiteError(
            f"{folder} is too long for the sockets below it ({len(bytes(folder))} bytes, at most {_LONGEST})",
            "set [paths] run to a shorter folder, such as /run/vmbatch",
        )
    mux = folder / "mux"
    mux.mkdir(mode=0o700)
    _give(mux, person)
    (folder / "ready").mkdir(mode=0o711)
    client = _key(folder / "id")
    host = _key(folder / "host")
    private = (folder / "host").read_text()
    (folder / "host").unlink()
    (folder / "host.pub").unlink()
    (folder / "id.pub").unlink()
    (folder / "id").chmod(0o400)
    _give(folder / "id", person)
    write(folder / "known_hosts", f"vmbatch-{guest.uuid} {host}\n")
    write(folder / "ssh_config", ssh_config(guest))
    return client, private, host


def _key(file: Path) -> str:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vmbatch", "-f", file], timeout_s=30)
    return file.with_suffix(".pub").read_text().rpartition(" ")[0]


def _give(place: Path, person: Person) -> None:
    """Hand our own, fresh file in a folder of root's to the user."""
    if os.geteuid() == 0:
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(handle, person.uid, person.gid)
        finally:
            os.close(handle)


def give_log(journal: Journal, name: str, person: Person) -> None:
    """The job's log and its console belong to its owner: they may be read while and after it runs.

    The console only when libvirt has opened it: an owner's lease (fcntl(2)) would keep libvirt waiting.
    """
    place = journal.directory / name
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    _give(place, person)


def hand_over(config: Config, guest: Guest, running: Identity | None, phases: dict[str, float]) -> None:
    """Tell the job's shell that its guest is ready, and all that it needs."""
    facts: dict[str, object] = {
        "job": guest.job_id,
        "key": guest.key,
        "n": guest.n,
        "user": guest.person.name,
        "uid": guest.person.uid,
        "image": guest.image,
        "asked_by": guest.asked_by,
        "name": guest.name,
        "hypervisor": guest.hypervisor,
        "cpus": guest.cpus,
        "memory_mib": guest.memory_mib,
        "address": guest.nic.ssh_host,
        "log": guest.console.parent,
        "phases": json.dumps(phases),
        "workdir": guest.workdir,
        "home": guest.person.home,
        "console": guest.console,
        "max_input_mib": config.files.max_input_mib,
        "max_output_mib": config.files.max_output_mib,
        "max_files": config.files.max_files,
    }
    if guest.tars:
        facts["tars"] = json.dumps([tar.path for tar in guest.tars])
    if guest.inputs is not None:
        facts["inputs"] = json.dumps(guest.inputs)
    if running:
        facts.update(pid=running.pid, start=running.start)
    write_state(guest.run_dir, "ready", **facts)


def ssh_config(guest: Guest) -> str:
    """Everything that OpenSSH may do with a guest, which counts as a hostile server. See ssh_config(5)."""
    options = {
        "HostName": guest.nic.ssh_host,
        "Port": guest.nic.ssh_port,
        "User": guest.person.name,
        "IdentityFile": guest.run_dir / "id",
        "UserKnownHostsFile": guest.run_dir / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": f"vmbatch-{guest.uuid}",
        "HostKeyAlgorithms": "ssh-ed25519",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "PreferredAuthentications": "publickey",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "AddressFamily": "inet",
        "ConnectTimeout": 20,
        "ConnectionAttempts": 4,  # an address lookup that got no answer in time is no lost guest
        "LogLevel": "ERROR",
        "ControlMaster": "auto",
        "ControlPath": guest.run_dir / "mux" / "s",
        "ControlPersist": "yes",
    }
    return "Host guest\n" + "".join(f" {word} {value}\n" for word, value in options.items())


def write(file: Path, text: str) -> None:
    """Write a file that everybody may read, in one step."""
    fresh = file.with_name(f".{file.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(handle, 0o644)
        stream.write(text.encode(errors="surrogateescape"))
    fresh.replace(file)


def write_state(folder: Path, state: str, **facts: object) -> None:
    """Write `state`: one `word value` a line; a line end in a value is written \\n and a backslash \\\\."""
    lines = [f"state {state}"]
    for word, value in facts.items():
        text = str(value).replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"{word} {text}")
    write(folder / "state", "\n".join(lines) + "\n")


def read_state(folder: Path) -> dict[str, str]:
    """Read what write_state wrote; {} where there is nothing."""
    try:
        raw = (folder / "state").read_bytes()
    except OSError:
        return {}
    facts = {}
    for line in raw.decode(errors="surrogateescape").split("\n"):
        word, _, value = line.partition(" ")
        facts[word] = value.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
    facts.pop("", None)
    return facts


def refuse(config: Config, journal: Journal, job: Job, error: VMBatchError) -> None:
    """Leave the reason where the job's shell looks for its guest."""
    folder = path(config, journal.name)
    if not folder.is_dir():
        make(config, journal, job)
    kind = {UserError: "user", GuestError: "guest", SiteError: "site"}.get(type(error), "site")
    facts: dict[str, object] = {
        "kind": kind,
        "job": job.id,
        "key": journal.key,
        "n": journal.n,
        "log": journal.directory,
        "user": job.user,
        "uid": job.uid,
        "asked_by": job.asked_by,
        "message": printable(str(error)),
    }
    if isinstance(error, GuestError) and error.console:
        facts["console"] = printable(error.console, 4000)
    write_state(folder, "refused", **facts)
