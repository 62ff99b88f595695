"""What `vmbatch doctor` looks at: each check says ok, warning or failure, and the mend."""

import ipaddress
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmbatch import accelerator, catalogue, domain, reap, templates
from vmbatch import guest as guest_side
from vmbatch.config import Config, check_trusted
from vmbatch.errors import VMBatchError
from vmbatch.hypervisor import Hypervisor
from vmbatch.images import disks
from vmbatch.process import run

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `mend` is what to type or to change; "" where nothing is wrong."""

    level: str
    what: str
    text: str
    mend: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """Yield one finding after the other, the ones that others depend on first."""
    for what, check in CHECKS:
        try:
            for level, text, mend in check(config):
                yield Finding(level, what, text, mend)
        except VMBatchError as error:
            yield Finding(FAILURE, what, error.message, error.hint)
        except OSError as error:
            yield Finding(FAILURE, what, f"{error.filename}: {error.strerror}")


Lines = Iterator[tuple[str, str, str]]


def _configuration(config: Config) -> Lines:
    yield OK, f"{config.file or 'no file: all defaults'}", ""


def _python(config: Config) -> Lines:
    if config.root:
        check_trusted(Path(sys.executable))
        check_trusted(Path(__file__))
    world = all(place.stat().st_mode & stat.S_IXOTH for place in Path(__file__).parents)
    if not world:
        yield FAILURE, f"{Path(__file__).parent} is closed to job users, whose shell it is", "install vmbatch elsewhere"
    else:
        yield OK, f"{sys.executable}, vmbatch in {Path(__file__).parent}", ""
    guest_side.helper()


def _libvirt(config: Config) -> Lines:
    with Hypervisor(config.libvirt.uri, config.libvirt.call_timeout_s) as hypervisor:
        versions = hypervisor.version()
    yield OK, f"{config.libvirt.uri}: libvirt {versions['libvirt']}, QEMU {versions['qemu']}", ""


def _qemu(config: Config) -> Lines:
    if not config.root:
        return
    text = Path("/etc/libvirt/qemu.conf").read_text()
    match = re.search(r'^\s*user\s*=\s*"?([^"\s]+)', text, re.MULTILINE)
    if match and match[1] in ("root", "0", "+0"):
        yield FAILURE, "/etc/libvirt/qemu.conf runs QEMU as root", "remove the line user = ... there, restart libvirtd"
    else:
        yield OK, "QEMU does not run as root", ""


def _accelerator(config: Config) -> Lines:
    verdict = accelerator.known(config) or accelerator.remember(config, accelerator.examine(config))
    if verdict.hypervisor == "kvm":
        yield OK, f"KVM: {verdict.reason}", ""
    elif config.accelerator.allow_tcg:
        yield WARNING, f"software emulation (slow, no security boundary): {verdict.reason}", "use a machine with KVM"
    else:
        mend = "use a machine with KVM, or set [accelerator] allow_tcg = true"
        yield FAILURE, f"no KVM: {verdict.reason}", mend
    kvm = Path("/dev/kvm")
    if config.root and kvm.exists() and kvm.stat().st_mode & 0o060 != 0o060:
        yield (
            WARNING,
            "/dev/kvm is closed to QEMU's user, so libvirt probes QEMU anew at every start of a guest (seconds)",
            "chgrp kvm /dev/kvm; chmod g+rw /dev/kvm",
        )


def _templates(config: Config) -> Lines:
    for name in templates.names(config):
        templates.read(config, name)
    for name in config.users.templates:
        if name not in templates.names(config):
            yield FAILURE, f"[users] templates names '{name}', which there is not", "vmbatch template list"
    yield OK, "templates: " + ", ".join(templates.names(config)), ""
    if not domain.SCHEMA.exists():
        yield FAILURE, f"libvirt's schema {domain.SCHEMA} is missing", "apt-get install libvirt0"


def _images(config: Config) -> Lines:
    images = catalogue.read(config)
    if not images:
        yield WARNING, "the catalogue is empty", "vmbatch image build tiny"
    for image in images.values():
        for path in image.files:
            if not path.is_file():
                yield FAILURE, f"image {image.name}: {path} is missing", f"vmbatch image build {image.name}"
            elif config.root:
                check_trusted(path)
        templates.read(config, image.template)
        for group in catalogue.unknown_groups(image):
            yield WARNING, f"image {image.name} names the unknown group {group}", f"mend {config.paths.catalogue}"
    if images:
        yield OK, "images: " + ", ".join(images), ""


def _folders(config: Config) -> Lines:
    for path in (config.paths.state, config.paths.run, config.paths.images, config.paths.store):
        if not path.exists():
            continue
        if config.root:
            check_trusted(path)
        if not os.access(path, os.W_OK):
            yield FAILURE, f"{path} cannot be written", f"ls -ld {path}"
    yield OK, f"folders: {config.paths.state}, {config.paths.run}", ""


def _space(config: Config) -> Lines:
    folder = Path(re.sub(r"/[^/]*%.*", "", str(config.paths.scratch)))
    while not folder.exists():
        folder = folder.parent
    disks.check_space(folder)
    status = os.statvfs(folder)
    yield OK, f"{folder}: {status.f_bavail * status.f_frsize >> 20} MiB free for overlays", ""


def _network(config: Config) -> Lines:
    if config.network.default != "nat":
        yield OK, f"network {config.network.default}", ""
        return
    run(["nft", "list", "tables"], timeout_s=20)
    subnet = ipaddress.ip_network(config.network.subnet)
    if subnet.num_addresses < config.limits.max_guests + 32:
        yield FAILURE, f"{subnet} is too small for {config.limits.max_guests} guests", "set [network] subnet"
    for line in run(["ip", "-4", "-o", "route"], timeout_s=20).text.splitlines():
        word = line.split()[0]
        other = ipaddress.ip_network(word, strict=False) if word[0].isdigit() else None
        if other and other.overlaps(subnet) and f"dev {config.network.bridge}" not in line:
            yield FAILURE, f"{subnet} overlaps the route {line.strip()}", "set [network] subnet"
    yield OK, f"nat on {config.network.bridge}, {subnet}", ""


def _leftovers(config: Config) -> Lines:
    dead = [f"{journal.name} ({why})" for journal in reap.journals(config) if (why := reap.dead(config, journal))]
    if dead:
        yield WARNING, "guests of dead jobs: " + ", ".join(dead), "vmbatch reap"
    else:
        yield OK, "no guests of dead jobs", ""


def _slurm(config: Config) -> Lines:
    if not config.slurm.conf.exists():
        yield OK, "no Slurm on this node", ""
        return
    text = config.slurm.conf.read_text()
    settings = {word.lower(): value for word, value in re.findall(r"^\s*(\w+)\s*=\s*(.*)$", text, re.MULTILINE)}
    for name in ("Prolog", "Epilog"):
        file = Path(settings.get(name.lower(), "").strip())
        if "vmbatch" not in str(file):
            yield FAILURE, f"{config.slurm.conf}: {name} is not ours", "vmbatch install --scheduler slurm"
        elif not os.access(file, os.X_OK):
            yield FAILURE, f"{file} is missing", "vmbatch install --scheduler slurm"
        elif config.root:
            check_trusted(file)
    if not re.search(r"alloc|contain", settings.get("prologflags", ""), re.IGNORECASE):
        yield WARNING, "PrologFlags lacks Alloc: guests start late, and not on every node", "add PrologFlags=Alloc"
    if "nohold_on_prolog_fail" not in settings.get("schedulerparameters", ""):
        mend = "add SchedulerParameters=nohold_on_prolog_fail"
        yield WARNING, "jobs that meet a broken node are held until somebody releases them", mend
    stack = config.slurm.conf.parent / "plugstack.conf.d" / "vmbatch.conf"
    if not stack.exists() and not config.slurm.comment:
        yield FAILURE, f"{stack} is missing: there is no --vm option", "vmbatch install --scheduler slurm"
    elif stack.exists() and not Path(stack.read_text().split()[1]).exists():
        yield FAILURE, f"the plugin that {stack} names is missing", "vmbatch install --scheduler slurm"
    if config.slurm.comment and "taskprolog" not in settings:
        mend = "vmbatch install --scheduler slurm"
        yield FAILURE, "[slurm] comment is on, but no TaskProlog keeps such jobs off the host", mend
    yield OK, f"Slurm: {config.slurm.conf}", ""


CHECKS: tuple[tuple[str, Callable[[Config], Lines]], ...] = (
    ("configuration", _configuration),
    ("installation", _python),
    ("libvirt", _libvirt),
    ("qemu", _qemu),
    ("accelerator", _accelerator),
    ("templates", _templates),
    ("images", _images),
    ("folders", _folders),
    ("disk space", _space),
    ("network", _network),
    ("leftovers", _leftovers),
    ("slurm", _slurm),
)
