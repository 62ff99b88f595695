"""vmbatch doctor on a node that is fit, and on broken ones: each fault is one line, with its mend."""

from pathlib import Path
from typing import Any

import pytest
from devsite import DEV, Site


def line(site: Site, area: str, code: int = 3) -> tuple[str, str]:
    """Run doctor; return what it says of an area and the mend below it."""
    done = site.call("doctor", cwd="/")
    assert done.returncode == code, done.stdout
    lines = done.stdout.splitlines()
    found = [i for i, text in enumerate(lines) if text.split()[1].startswith(area) and not text.startswith("ok")]
    assert found, done.stdout
    return lines[found[0]], lines[found[0] + 1]


def test_a_fit_node_has_no_failure(site: Site) -> None:
    done = site.call("doctor", cwd="/")
    assert done.returncode == 0, done.stdout
    for area in (
        "configuration",
        "libvirt",
        "accelerator",
        "templates",
        "images",
        "folders",
        "disk space",
        "network",
        "slurm",
    ):
        assert f" {area}: " in done.stdout
    assert "failure" not in done.stdout


@pytest.mark.parametrize(
    ("section", "keys", "area", "said", "mend"),
    [
        ("libvirt", {"uri": "qemu+unix:///system?socket=/nonexistent"}, "libvirt", "/nonexistent", "start it"),
        ("accelerator", {"allow_tcg": False}, "accelerator", "no KVM", "allow_tcg = true"),
        ("network", {"subnet": "10.214.248.0/30"}, "network", "too small", "[network] subnet"),
        ("users", {"templates": ["nosuch"]}, "templates", "names 'nosuch'", "vmbatch template list"),
        ("paths", {"images": "/nonexistent"}, "images", "is missing", "vmbatch image build"),
    ],
)
def test_a_fault_of_the_configuration(
    site: Site, section: str, keys: dict[str, Any], area: str, said: str, mend: str
) -> None:
    site.configure(**{section: keys})
    try:
        text, below = line(site, area)
    finally:
        site.configure()
    assert said in text
    assert mend in text + below


def test_an_image_that_others_may_write(site: Site) -> None:
    base = site.folder / "loose.qcow2"
    base.write_bytes((DEV / "images" / "tiny.qcow2").read_bytes())
    base.chmod(0o666)
    folder = site.folder / "catalogue"
    folder.mkdir()
    (folder / "loose.toml").write_text(f'source = "{base}"\n')
    site.configure(paths={"catalogue": folder})
    try:
        text, below = line(site, "images")
    finally:
        site.configure()
    assert str(base) in text and "chmod" in below


def test_a_template_that_is_broken(site: Site) -> None:
    folder = site.folder / "templates"
    folder.mkdir()
    (folder / "default.xml").write_text("<domain type='kvm'>\n<vbconfg/></domain>")
    try:
        text, _ = line(site, "templates")
    finally:
        (folder / "default.xml").unlink()
    assert f"{folder}/default.xml:2" in text and "vbconfg" in text


def test_a_full_scratch_folder(site: Site, tmp_path: Path) -> None:
    site.configure(paths={"scratch": "/proc"})
    try:
        text, _ = line(site, "disk")
    finally:
        site.configure()
    assert "/proc has 0 bytes free" in text
