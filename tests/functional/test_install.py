"""vmbatch install on a node's real files, by the installed copy: what it writes, keeps, checks and takes away."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from devsite import Site

CONF = "ClusterName=c\nProlog=/etc/slurm/site-prolog\nPrologFlags=X11\nNodeName=n1\n"


@pytest.fixture
def node(site: Site, tmp_path: Path) -> tuple[Path, Path]:
    """slurm.conf of a node, and a prefix."""
    conf = tmp_path / "slurm" / "slurm.conf"
    conf.parent.mkdir()
    conf.write_text(CONF)
    site.configure(slurm={"conf": conf})
    return conf, tmp_path / "usr"


def install(site: Site, prefix: Path, *options: str) -> Any:
    return site.call("install", "--scheduler", "slurm", "--prefix", prefix, *options)


def test_check_changes_nothing_and_install_twice_is_once(site: Site, node: tuple[Path, Path]) -> None:
    conf, prefix = node
    first = install(site, prefix, "--check")
    assert first.returncode == 1 and "+Prolog=" in first.stdout
    assert conf.read_text() == CONF and not prefix.exists()
    assert install(site, prefix).returncode == 0
    written = {path: path.stat().st_mtime_ns for path in [conf, *prefix.rglob("*")]}
    again = install(site, prefix)
    assert (again.returncode, again.stdout) == (0, "everything is installed already\n")
    assert {path: path.stat().st_mtime_ns for path in [conf, *prefix.rglob("*")]} == written
    assert install(site, prefix, "--check").returncode == 0


def test_the_first_lines_are_absolute_and_isolated(site: Site, node: tuple[Path, Path]) -> None:
    _, prefix = node
    install(site, prefix)
    executables = [path for path in prefix.rglob("*") if path.is_file() and path.stat().st_mode & 0o111]
    scripts = {path.name: path.read_bytes().split(b"\n")[0].decode() for path in executables if path.suffix != ".so"}
    for name in ("vmbatch-hook", "vmbatch-remoteshell", "vmbatch-reap", "pygrub-vmbatch"):
        python = re.fullmatch(r"#!(/\S+) -I", scripts.pop(name))
        assert python and Path(python[1]).parent.samefile(Path(sys.executable).parent)
    assert scripts == dict.fromkeys(("prolog", "epilog", "task_prolog"), "#!/bin/sh")
    assert all(path.stat().st_mode & 0o022 == 0 for path in executables)


def test_the_installed_entries_find_their_files(site: Site, node: tuple[Path, Path]) -> None:
    _, prefix = node
    install(site, prefix)
    nothing = {"cwd": "/", "env": {}, "capture_output": True, "text": True, "check": False}
    reap = subprocess.run([prefix / "libexec/vmbatch/vmbatch-reap"], **nothing)  # type: ignore[call-overload]
    assert (reap.returncode, reap.stderr) == (0, "")
    shell = subprocess.run([prefix / "bin/vmbatch-remoteshell", "true"], **nothing)  # type: ignore[call-overload]
    assert shell.returncode == 125 and "no batch job" in shell.stderr
    boot = subprocess.run([prefix / "libexec/vmbatch/pygrub-vmbatch", "--help"], **nothing)  # type: ignore[call-overload]
    assert (boot.returncode, boot.stderr) == (0, "") and boot.stdout.startswith("usage: pygrub-vmbatch")
    unit = (prefix / "lib/systemd/system/vmbatch-reap.service").read_text()
    assert f"ExecStart={prefix}/libexec/vmbatch/vmbatch-reap\n" in unit
    page = prefix / "share/man/man1/vmbatch.1"
    assert "vmbatch" in subprocess.run(["man", "-l", str(page)], capture_output=True, text=True, check=True).stdout


def test_a_sites_own_prolog_is_kept_and_comes_back(site: Site, node: tuple[Path, Path]) -> None:
    conf, prefix = node
    install(site, prefix)
    assert "/etc/slurm/site-prolog || exit" in (prefix / "libexec/vmbatch/slurm/prolog").read_text()
    gone = install(site, prefix, "--uninstall")
    assert gone.returncode == 0
    assert conf.read_text() == CONF
    assert [path for path in prefix.rglob("*") if path.is_file()] == []
    assert not (conf.parent / "plugstack.conf.d" / "vmbatch.conf").exists()


def test_an_ordinary_user_cannot_install(site: Site, node: tuple[Path, Path], alice: Any) -> None:
    done = site.call("install", "--scheduler", "slurm", "--prefix", "/nowhere", user=alice.pw_uid, cwd="/")
    assert done.returncode in (1, 3)
    assert "root" in done.stderr
