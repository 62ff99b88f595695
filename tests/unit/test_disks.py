"""Overlays and empty disks as each hypervisor wants them: programs in PATH write down how they were called."""

from dataclasses import replace
from pathlib import Path

import pytest

from vmbatch import process
from vmbatch.disk import Disk, Origin
from vmbatch.errors import SiteError
from vmbatch.images import disks

pytestmark = pytest.mark.programs


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that note their arguments and make the file that they are asked for."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("vhd-util", "qcow-create", "VBoxManage"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/called\n: > "{tmp_path}/over"\n')
        (tools / name).chmod(0o755)
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", f"{tools}:{process.PATH}")
    return tmp_path / "called"


def disk(tmp_path: Path, **changes: object) -> Disk:
    made = Disk(
        name="image", element=0, target="xvda", bus="xen", use="overlay", file=tmp_path / "over", format="vhd",
        base=tmp_path / "base", base_format="raw", origin=Origin("file", "base", "shared"), virtual_size=3 << 20,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "base", "words"),
    [
        ("vhd", "raw", "vhd-util snapshot -n {0}/over -p {0}/base -m"),  # XEN4
        ("vhd", "vhd", "vhd-util snapshot -n {0}/over -p {0}/base"),
        ("qcow", "raw", "qcow-create 3 {0}/over {0}/base"),  # XEN3
        ("vdi", "vdi", "VBoxManage createmedium disk --filename {0}/over --format VDI --diffparent {0}/base"),
    ],
)
def test_overlays_of_other_hypervisors_are_made_by_their_tools(
    tmp_path: Path, called: Path, format: str, base: str, words: str
) -> None:
    disks.overlay(disk(tmp_path, format=format, base_format=base))
    assert called.read_text() == words.format(tmp_path) + "\n"


def test_an_empty_vhd_on_xen_is_made_by_vhd_util(tmp_path: Path, called: Path) -> None:
    empty = disk(tmp_path, origin=Origin("empty", "cache", "always", "vhd-util-vhd", size_mib=20480))
    disks.empty(tmp_path / "over", empty)
    assert called.read_text() == f"vhd-util create -n {tmp_path}/over -s 20480\n"


def test_a_missing_tool_is_the_sites_error(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot run vhd-util"):
        disks.overlay(disk(tmp_path))


def test_a_base_whose_size_is_known_is_not_opened(tmp_path: Path) -> None:
    over = disk(tmp_path, format="qcow2")
    disks.overlay(over)  # there is no base
    assert over.file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SiteError, match="base"):
        disks.overlay(replace(over, file=tmp_path / "two", virtual_size=None))
