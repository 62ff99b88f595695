"""KVM or emulation: found out once a boot, by starting a kernel.

/dev/kvm may exist and still be no use: nested and patched hypervisors pass every check and hang on a stock Linux. So
after a quick look at the processor, a kernel is booted under KVM until it prints its version; the verdict is kept for
this boot of the node.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vmbatch.config import Config
from vmbatch.errors import SiteError
from vmbatch.process import hear

PROBE_S = 5.0
QEMU = Path("/usr/bin/qemu-system-x86_64")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kvm` or `qemu`, and why, for the log and for doctor."""

    hypervisor: str
    reason: str


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def choose(config: Config) -> Verdict:
    """Return what guests run on. SiteError where that would be emulation and the site does not allow it."""
    verdict = known(config) or remember(config, examine(config))
    if verdict.hypervisor == "qemu" and not config.accelerator.allow_tcg:
        raise SiteError(
            f"this node cannot run guests on KVM: {verdict.reason}",
            "set [accelerator] allow_tcg = true to allow slow software emulation",
        )
    return verdict


def known(config: Config) -> Verdict | None:
    """Return the verdict of this boot, None where there is none yet."""
    try:
        record = json.loads((config.paths.state / "accelerator.json").read_text())
        if record.pop("boot_id") == boot_id():
            return Verdict(**record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(config: Config, verdict: Verdict) -> Verdict:
    """Keep a verdict for this boot of the node."""
    file = config.paths.state / "accelerator.json"
    fresh = file.with_name(f".accelerator.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({**asdict(verdict), "boot_id": boot_id()}))
        fresh.replace(file)
    return verdict


def examine(config: Config) -> Verdict:
    """Look at the processor, then boot a kernel under KVM."""
    reason = _unfit()
    if reason:
        return Verdict("qemu", reason)
    kernel = _kernel(config)
    if kernel is None:
        return Verdict("kvm", "the processor has vmx or svm (no kernel was found for a boot probe)")
    return _probe(kernel)


def _unfit() -> str:
    flags = Path("/proc/cpuinfo").read_text().split()
    modules = [name for name in ("kvm_intel", "kvm_amd") if Path("/sys/module", name).exists()]
    if not modules and not {"vmx", "svm"} & set(flags):
        return "the processor shows neither vmx nor svm, and neither kvm_intel nor kvm_amd is loaded"
    if not Path("/dev/kvm").exists():
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is closed to this user (add the user to group kvm)"
    return ""


def _kernel(config: Config) -> Path | None:
    candidates = [config.accelerator.kernel, *sorted(Path("/boot").glob("vmlinuz-*"), reverse=True)]
    return next((path for path in candidates if os.access(path, os.R_OK)), None)


def _probe(kernel: Path) -> Verdict:
    """Boot a kernel without a disk until it prints its version, at most PROBE_S seconds."""
    argv = [
        str(QEMU), "-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none", "-nodefaults", "-no-reboot",
        "-serial", "stdio", "-kernel", str(kernel), "-append", "earlyprintk=serial console=ttyS0 panic=-1",
    ]  # fmt: skip
    try:
        said = hear(argv, b"Linux version", PROBE_S)
    except SiteError as error:
        return Verdict("qemu", str(error))
    if b"Linux version" in said:
        return Verdict("kvm", f"a Linux kernel boots under KVM ({kernel})")
    words = said.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
    return Verdict("qemu", f"a Linux kernel does not boot under KVM within {PROBE_S:g} s: {words[0][:200]}")
