"""KVM or emulation: decided by a boot probe once a boot, kept, and explained."""

import json
from pathlib import Path

import pytest
import things

from vmbatch import accelerator
from vmbatch.accelerator import Verdict
from vmbatch.errors import SiteError


def test_a_verdict_is_kept_for_this_boot_only(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    assert accelerator.known(conf) is None
    accelerator.remember(conf, Verdict("kvm", "why"))
    assert accelerator.known(conf) == Verdict("kvm", "why")
    file = conf.paths.state / "accelerator.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another"}))
    assert accelerator.known(conf) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot_id": 1}', '{"x": 2}'])
def test_a_broken_record_is_no_verdict(text: str, tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    conf.paths.state.mkdir()
    (conf.paths.state / "accelerator.json").write_text(text)
    assert accelerator.known(conf) is None


def test_emulation_needs_the_administrators_word(tmp_path: Path) -> None:
    conf = things.site(tmp_path, "[accelerator]\nallow_tcg = false\n")
    accelerator.remember(conf, Verdict("qemu", "no vmx"))
    with pytest.raises(SiteError, match="cannot run guests on KVM: no vmx") as caught:
        accelerator.choose(conf)
    assert "allow_tcg = true" in caught.value.hint
    allowed = things.site(tmp_path, "[accelerator]\nallow_tcg = true\n")
    assert accelerator.choose(allowed).hypervisor == "qemu"


@pytest.mark.programs
@pytest.mark.parametrize(
    ("script", "hypervisor", "said"),
    [
        ("echo '[    0.000000] Linux version 6.1.0'; sleep 60", "kvm", "a Linux kernel boots under KVM"),
        ("echo Probing EDD; sleep 60", "qemu", "does not boot under KVM within 0.5 s: Probing EDD"),
        ("echo 'failed to set MSR 0x10a' >&2; exit 1", "qemu", "failed to set MSR 0x10a"),
        ("exit 1", "qemu", "it printed nothing"),
    ],
)
def test_the_boot_probe_believes_a_kernel_only(
    script: str, hypervisor: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    monkeypatch.setattr(accelerator, "QEMU", qemu)
    monkeypatch.setattr(accelerator, "PROBE_S", 0.5)
    verdict = accelerator._probe(Path("/boot/vmlinuz"))
    assert verdict.hypervisor == hypervisor
    assert said in verdict.reason
