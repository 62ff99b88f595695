"""What will boot, decided: pure functions of configuration, catalogue, request and node. No clock, no disk, no chance."""

import ipaddress
import uuid
from collections.abc import Mapping
from pathlib import Path

from vmbatch import choices, contexts, diskplan
from vmbatch.config import Config
from vmbatch.disk import Archive, Own
from vmbatch.errors import SiteError, UserError, nearest
from vmbatch.hypervisors import EMULATED, KINDS
from vmbatch.model import SCHEMA, Guest, Image, Job, Nic, Node, Request, Size, Slot, printable
from vmbatch.names import safe, tap_name
from vmbatch.quantities import mib_text
from vmbatch.request import canonical
from vmbatch.templates import Template

MAX_CPUS = 255  # what QEMU's machine type `pc` takes
_NAMESPACE = uuid.UUID("8d8f4a53-0a5e-5a0e-9b1e-4f0c3c0b6f10")
FIRST_ADDRESS = 16  # the first addresses of the subnet stay with the node


def choose_template(image: Image, request: Request) -> str:
    """Return the template's name. UserError where the request wants one that the image does not allow."""
    allowed = (image.template, *image.templates)
    if request.template is not None and request.template not in allowed:
        raise UserError(
            f"image {printable(image.name, 200)} cannot be used with template '{request.template}'",
            f"the nearest are: {nearest(request.template, allowed)}",
        )
    return request.template or image.template


def size(config: Config, image: Image, request: Request, node: Node) -> Size:
    """Decide processors and memory: the job's allocation minus QEMU's own needs, or the image's wishes.

    QEMU's own needs are limits.memory_overhead_mib and 1/64 of the guest's memory. UserError where the request
    exceeds the grant, or the grant falls below the image's minimum.
    """
    granted, overhead = node.allocation, config.limits.memory_overhead_mib
    memory = image.memory_mib if granted.memory_mib is None else (granted.memory_mib - overhead) * 64 // 65
    if request.memory_mib is not None:
        if granted.memory_mib is not None and request.memory_mib > memory:
            needed = request.memory_mib + overhead + request.memory_mib // 64 + 1
            raise UserError(
                f"memory={request.memory_mib}M is more than the job's {mib_text(granted.memory_mib)} leave for a guest "
                f"({mib_text(max(memory, 0))})",
                f"ask the scheduler for more, such as --mem={needed}M, or for less in the VM request",
            )
        memory = request.memory_mib
    if memory + overhead > node.memory_mib:
        raise UserError(
            f"a guest of {mib_text(memory)} is more than node {node.name} has ({mib_text(node.memory_mib)})",
            "ask for less with memory= in the VM request",
        )
    if memory < image.minimum_memory_mib:
        needed = image.minimum_memory_mib + overhead + image.minimum_memory_mib // 64 + 1
        raise UserError(
            f"image {image.name} needs at least {image.minimum_memory_mib} MiB, but the guest would get "
            f"{max(memory, 0)} MiB",
            f"submit with --mem={needed}M or more" if request.memory_mib is None else "ask for more with memory=",
        )
    return Size(_cpus(image, request, node), memory, memory + overhead + memory // 64)


def _cpus(image: Image, request: Request, node: Node) -> int:
    granted = node.allocation.cpus
    if request.cpus is not None and granted is not None and request.cpus > granted:
        raise UserError(
            f"cpus={request.cpus} is more than the job's {granted}",
            f"submit with --cpus-per-task={request.cpus}, or ask for fewer",
        )
    if request.cpus is not None and request.cpus > MAX_CPUS:
        raise UserError(f"cpus={request.cpus} is more than a guest can have ({MAX_CPUS})", "ask for fewer")
    return min(request.cpus or granted or image.cpus, MAX_CPUS)


def hypervisor(template: Template, node: Node) -> str:
    """Return libvirt's domain type. SiteError where the template wants KVM and the node has none."""
    wanted = template.machine.hypervisor
    if wanted == "KVM" and node.hypervisor != "kvm":
        raise SiteError(f"template {template.name} wants KVM: {node.accelerator}", "vmbatch doctor")
    if KINDS[wanted].domain not in EMULATED:
        return KINDS[wanted].domain
    return "qemu" if wanted == "QEMU" else node.hypervisor


def plan(
    config: Config,
    images: Mapping[str, Image],
    template: Template,
    job: Job,
    request: Request,
    node: Node,
    size: Size,
    slot: Slot,
    n: int,
    directory: Path,
) -> Guest:
    """Put everything together. `images` is what the request names, the one that it begins with as "".

    `directory` is the journal's; `slot` the guest's place on the node. Raises UserError where the template does not allow
    what the request asks for.
    """
    choices.check(template, request)
    image, machine = images[""], template.machine
    context = image.context or machine.context
    _offered(template, context)
    name = f"vmbatch-{job.key}.{n}"
    run_dir = config.paths.run / f"{job.key}.{n}"
    scratch = _scratch(config, job) / f"{job.key}.{n}"
    disks = diskplan.disks(config, images, template, scratch)
    return Guest(
        schema=SCHEMA,
        key=job.key,
        n=n,
        name=name,
        uuid=str(uuid.uuid5(_NAMESPACE, f"{config.paths.state}/{node.boot_id}/{name}")),
        hostname=_hostname(job),
        boot_id=node.boot_id,
        scheduler=job.scheduler,
        cluster=job.cluster,
        node=job.node,
        job_id=job.id,
        asked_by=job.asked_by,
        person=node.person,
        request=canonical(request),
        image=printable(image.name, 200),
        image_sha512=image.sha512,
        template=template.name,
        context=context,
        hypervisor=hypervisor(template, node),
        accelerator=node.accelerator,
        cpus=size.cpus,
        memory_mib=size.memory_mib,
        slot=slot.index,
        disks=disks,
        nics=(_nic(config, image, template, request, name, slot),),
        layout=diskplan.layout(template, disks),
        written=machine.written,
        archives=tuple(Archive(config.paths.tarfiles / t.source, t.path, t.strip, t.cdrom) for t in machine.tarfiles),
        tars=tuple(choices.own(template, "tar", path) for path in request.tars or ()),
        iso=scratch / "context.iso",
        cdrom=machine.cdrom.target if machine.cdrom else None,
        own_cdrom=choices.own(template, "cdrom", request.cdrom) if request.cdrom else None,
        job_path=machine.job_path,
        console=directory / "console.log",
        state=config.paths.state,
        run_dir=run_dir,
        scratch=scratch,
        workdir=job.workdir,
        inputs=machine.inputs if request.inputs is None else request.inputs,
        boot_timeout_s=image.boot_timeout_s or config.limits.boot_timeout_s,
        firmware=image.firmware,
        clock=image.clock,
        video=image.video,
        input=image.input,
        kernel=choices.own(template, "kernel", request.kernel) if request.kernel else image.kernel,
        initrd=_initrd(image, template, request),
        kernel_args=_kernel_args(image, template, request),
    )


def _offered(template: Template, context: str) -> None:
    """SiteError for what the tags know and this version does not have."""
    if context not in contexts.MODULES:
        raise SiteError(f"template {template.name}: {context} is not in this version", f"use {', '.join(contexts.MODULES)}")
    if template.machine.shell != "SSH":
        raise SiteError(f"template {template.name}: <vbremoteshell>CONSOLE is not in this version", "use SSH")


def _initrd(image: Image, template: Template, request: Request) -> Path | Own | None:
    """A user's own kernel does not go with the site's initial RAM disk."""
    if request.initrd:
        return choices.own(template, "initrd", request.initrd)
    return None if request.kernel else image.initrd


def _kernel_args(image: Image, template: Template, request: Request) -> str:
    """The kernel line; empty where the image boots by itself. UserError where a request would add to that."""
    added = (request.kernel_args or "", f"root={request.root}" if request.root else "")
    if not image.kernel and not request.kernel and not template.machine.paravirtual:
        if any(added):
            raise UserError(
                f"image {printable(image.name, 200)} boots by itself: kernelargs= and root= do not reach its kernel",
                "leave them out, or add kernel=PATH",
            )
        return image.kernel_args
    return " ".join(filter(None, (image.kernel_args, template.machine.boot_parameters, *added)))


def _scratch(config: Config, job: Job) -> Path:
    text = str(config.paths.scratch)
    if "%t" in text:
        if job.tmpdir is None:
            raise SiteError("paths.scratch holds %t, but this job has no TMPDIR", "use %j or %u instead")
        text = text.replace("%t", str(job.tmpdir))
    return Path(text.replace("%j", safe(job.id)).replace("%u", safe(job.user, "-")))


def _hostname(job: Job) -> str:
    """A DNS label: `job-4711`."""
    label = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"job-{job.id}").strip("-").lower()
    return label[:60].rstrip("-")


def _nic(config: Config, image: Image, template: Template, request: Request, name: str, slot: Slot) -> Nic:
    network = config.network
    chosen = request.network or template.machine.network or network.default
    offered = ("user",) if network.default == "user" else ("nat", "isolated")
    if chosen not in offered:
        if request.network:
            raise UserError(f"network={chosen} is not to be had here", f"networks are: {', '.join(offered)}")
        raise SiteError(f"{template.file}: network {chosen!r} is not to be had here", f"networks are: {', '.join(offered)}")
    mac = f"52:54:00:76:{slot.index >> 8:02x}:{slot.index & 255:02x}"
    device = tap_name(network.name, name)
    if chosen == "user":
        # Fixed by QEMU's user networking (slirp): the guest is always 10.0.2.15, and its own world
        return Nic(
            "user", mac, image.nic_model, device, "", "10.0.2.15/24", "10.0.2.2", ("10.0.2.3",), "127.0.0.1", slot.port
        )
    subnet = ipaddress.ip_network(network.subnet)
    address, gateway = str(subnet[FIRST_ADDRESS + slot.index]), str(subnet[1])
    static = (template.machine.addressing or network.addressing) == "static"
    return Nic(
        chosen,
        mac,
        image.nic_model,
        device,
        network.name,
        f"{address}/{subnet.prefixlen}" if static else None,
        gateway if static else None,
        (gateway,) if static else (),
        address,
        22,
    )
