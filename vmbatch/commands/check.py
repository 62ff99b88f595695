"""vmbatch check: what a request would lead to, without a guest, a node or libvirt. For users on a login node."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from vmbatch import accelerator, catalogue, choices, diskplan, domain, node, plan, request, templates
from vmbatch.config import Config, load
from vmbatch.errors import SiteError, UserError
from vmbatch.images import own
from vmbatch.model import Allocation, Guest, Image, Job, Node, Person, Request, Slot
from vmbatch.quantities import memory_mib, mib_text
from vmbatch.settings import SECTIONS

NAME = "check"
HELP = "show what a VM request would lead to, and every reason why it would be refused"
EXAMPLES = """\
vmbatch check tiny
vmbatch check debian12:memory=2G --grant-memory 4G --grant-cpus 2
vmbatch check tiny --xml
vmbatch check --template cernvm.xml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST", nargs="?", help="as after --vm=: IMAGE[:KEY=VALUE]...")
    parser.add_argument("--template", type=Path, metavar="FILE", help="check a domain template instead of a request")
    parser.add_argument(
        "--grant-memory", metavar="SIZE", help="memory that the scheduler would grant (default: the image's)"
    )
    parser.add_argument("--grant-cpus", type=int, metavar="N", help="processors that the scheduler would grant")
    parser.add_argument("--xml", action="store_true", help="print the libvirt domain instead of a summary")


def main(options: argparse.Namespace) -> int:
    """Returns 0 where the request would be taken, 1 where it would be refused."""
    if (options.request is None) == (options.template is None):
        raise UserError("vmbatch check takes a request or a template", "vmbatch check tiny; vmbatch check --template FILE")
    if options.template:
        return _template(options.template)
    config = load(options.config)
    reasons: list[str] = []
    guest, xml = None, ""
    try:
        wish = request.parse(options.request)
        guest, xml = _plan(config, options, wish, catalogue.choose(config, wish), reasons)
    except UserError as error:
        reasons.append(str(error))
    for reason in reasons:
        print(f"refused: {reason}")
    if guest and options.xml and not reasons:
        print(xml, end="")
    elif guest and not reasons:
        _summary(guest)
    return 1 if reasons else 0


def _template(file: Path) -> int:
    """Check one file, without a host, a configuration or an image."""
    try:
        template = templates.parse(file.stem, file, file.read_bytes())
        made = template.machine
        _whole(template)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", "vmbatch check --template FILE") from None
    except SiteError as error:
        raise UserError(error.message, error.hint) from None
    print(f"{file}: ok; {made.hypervisor}, context by {made.context}, {len(made.disks)} disks with tags")
    return 0


def _whole(template: templates.Template) -> None:
    """Plan an imaginary job with it, and hold the domain against libvirt's schema. Raises SiteError naming the file."""
    config = Config(**{name: kind() for name, kind in SECTIONS.items()}, file=None, root=True)
    image = Image("image", "/images/image.qcow2")
    names = [disk.user.name for disk in template.machine.disks if disk.user]
    owner = Person("user", 1000, 1000, Path("/home/user"), (("user", 1000),))
    offer = Node("node", "boot", owner, Allocation(1, 1024), "kvm", "imagined")
    job = Job("local", "check", "node", "0", "user", 1000, 1000, Path("/home/user"), None)
    wish = Request("image", images=tuple((name, "image") for name in names if name) or None)
    images = {"": image, **dict.fromkeys(names, image)}
    slot = Slot(0, config.network.port_base)
    size = plan.size(config, image, wish, offer)
    try:
        guest = plan.plan(config, images, template, job, wish, offer, size, slot, 1, Path("/nowhere"))
        guest = replace(guest, disks=diskplan.assumed(guest.disks, config.paths.store))
        xml = domain.build(template, guest)
        if domain.SCHEMA.exists():
            domain.validate(xml)
    except (SiteError, UserError) as error:
        text = error.message if str(template.file) in error.message else f"{template.file}: {error.message}"
        raise SiteError(text, error.hint or "compare with default.xml: vmbatch template list") from None


def _plan(
    config: Config, options: argparse.Namespace, wish: Request, images: dict[str, Image], reasons: list[str]
) -> tuple[Guest | None, str]:
    """Plan as a start would; collect every reason against it instead of ending at the first."""
    offer = _offer(config, options)
    image = images[""]
    checks: list[Callable[[], object]] = [
        lambda: choices.check(templates.read(config, plan.choose_template(image, wish)), wish),
        *(partial(catalogue.permit, one, offer.person) for one in images.values()),
        lambda: plan.size(config, image, wish, offer),
    ]
    for check in checks:
        try:
            check()
        except UserError as error:
            reasons.append(str(error))
    if reasons:
        return None, ""
    template = templates.read(config, plan.choose_template(image, wish))
    job = Job("local", "check", offer.name, "0", offer.person.name, offer.person.uid, offer.person.gid, Path.cwd(), None)
    size = plan.size(config, image, wish, offer)
    slot = Slot(0, config.network.port_base)
    guest = plan.plan(config, images, template, job, wish, offer, size, slot, 1, Path("/nowhere"))
    reasons += _missing(config, guest)
    guest = replace(guest, disks=diskplan.assumed(guest.disks, config.paths.store))
    xml = domain.build(template, guest)
    if domain.SCHEMA.exists():
        domain.validate(xml)
    return guest, xml


def _missing(config: Config, guest: Guest) -> list[str]:
    """Say which files are not there or not allowed: the user's own are opened and looked at, as a start would."""
    found = []
    for disk in guest.disks:
        origin = disk.origin
        if origin.kind == "file" and not Path(origin.source).exists():
            found.append(f"{origin.source} is missing; ask the administrator")
        if origin.kind == "own":
            try:
                own.examine(config, guest.person, origin)
            except UserError as error:
                found.append(str(error))
    return found


def _offer(config: Config, options: argparse.Namespace) -> Node:
    memory = None
    if options.grant_memory:
        try:
            memory = memory_mib(options.grant_memory)
        except ValueError as error:
            raise UserError(f"--grant-memory {options.grant_memory}: {error}") from None
    verdict = accelerator.known(config) or accelerator.Verdict("kvm", "not looked at here; nodes find out by themselves")
    if verdict.hypervisor == "qemu" and not config.accelerator.allow_tcg:
        raise SiteError(f"this node cannot run guests on KVM: {verdict.reason}", "set [accelerator] allow_tcg = true")
    name = os.uname().nodename.partition(".")[0]
    return Node(
        name=name,
        boot_id=accelerator.boot_id(),
        person=node.person(os.geteuid()),
        allocation=Allocation(options.grant_cpus, memory),
        hypervisor=verdict.hypervisor,
        accelerator=verdict.reason,
    )


def _summary(guest: Guest) -> None:
    inputs = "the working directory" if guest.inputs is None else ", ".join(guest.inputs) or "nothing"
    lines = (
        ("image", guest.image),
        ("template", guest.template),
        ("context", guest.context),
        ("runs on", f"{guest.hypervisor} ({guest.accelerator})"),
        ("memory", mib_text(guest.memory_mib)),
        ("cpus", str(guest.cpus)),
        ("network", f"{guest.nic.network}, {guest.nic.address or 'dhcp'}"),
        ("user", f"{guest.person.name} ({guest.person.uid})"),
        ("directory", str(guest.workdir)),
        ("brought in", inputs),
        ("request", guest.request),
    )
    for word, value in lines:
        print(f"{word:11} {value}")
