"""vmbatch install: put the hooks, the job's shell and the plugin on a node, and take them away again."""

import argparse
import difflib
import hashlib
import os
from pathlib import Path

from vmbatch import installation
from vmbatch.config import SYSTEM_FILE, load
from vmbatch.errors import SiteError
from vmbatch.process import run

NAME = "install"
HELP = "install the hooks of a batch system on this node, or take them away"
EXAMPLES = """\
vmbatch install --scheduler slurm --check
vmbatch install --scheduler slurm
vmbatch install --scheduler slurm --uninstall"""
_HEADERS = Path("/usr/include/slurm")
_FIRST_CONFIG = "# See vmbatch.toml(5), or: vmbatch config --explain\n"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scheduler", required=True, choices=["slurm"], help="batch system of this node")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"), help="where to install (default: %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only show what would change; exit code 1 if anything would")
    what.add_argument("--uninstall", action="store_true", help="undo an installation")


def main(options: argparse.Namespace) -> int:
    """Returns 0 done or nothing to do; 1 with --check where something would change."""
    config = load(options.config)
    file = (options.config or SYSTEM_FILE).absolute()
    place = installation.layout(config, options.prefix.absolute(), file)
    if not options.check and os.geteuid() != 0:
        raise SiteError("only root can install hooks", "sudo vmbatch install --scheduler slurm")
    if options.uninstall:
        return _uninstall(place)
    changes = _changes(place)
    for path, text, _ in changes:
        _show(path, text)
    plugin = _plugin_is_old(place)
    if plugin:
        print(f"compile {place.plugin}")
    if not changes and not plugin:
        print("everything is installed already")
        return 0
    if options.check:
        return 1
    for path, text, mode in changes:
        _write(path, text, mode)
    if plugin:
        _compile(place)
    _say_rest(place)
    return 0


def _changes(place: installation.Layout) -> list[tuple[Path, str, int]]:
    """What is not yet as it should be: (path, text, mode)."""
    try:
        now = place.slurm_conf.read_text()
    except OSError as error:
        raise SiteError(f"cannot read {place.slurm_conf}: {error.strerror}", "set [slurm] conf in vmbatch.toml") from None
    conf, before = installation.slurm_lines(now, place)
    wanted = [(path, text, mode) for path, (text, mode) in installation.files(place, before).items()]
    if not place.config_file.exists():
        wanted.append((place.config_file, _FIRST_CONFIG, 0o644))
    stack = place.slurm_conf.parent / "plugstack.conf"
    include = f"include {place.plugstack.parent}/*.conf\n"
    present = stack.read_text() if stack.exists() else ""
    if include.strip() not in present:
        wanted.append((stack, present + include, 0o644))
    wanted.append((place.slurm_conf, conf, place.slurm_conf.stat().st_mode & 0o777))  # last: now it counts
    return [one for one in wanted if not _same(*one)]


def _same(path: Path, text: str, mode: int) -> bool:
    try:
        return path.read_text() == text and path.stat().st_mode & 0o777 == mode
    except OSError:
        return False


def _show(path: Path, text: str) -> None:
    before = path.read_text().splitlines() if path.exists() else []
    if not before:
        print(f"write {path}")
        return
    for line in difflib.unified_diff(before, text.splitlines(), str(path), str(path), lineterm="", n=1):
        print(line)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = path.with_name(f".{path.name}.vmbatch")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)


def _plugin_mark() -> str:
    """What the plugin is made of: our source, and the headers of this Slurm, which change with its version."""
    parts = [installation.source("spank", "vmbatch.c"), *sorted(_HEADERS.glob("*.h"))]
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def _plugin_is_old(place: installation.Layout) -> bool:
    return not place.plugin.exists() or _plugin_mark().encode() not in place.plugin.read_bytes()


def _compile(place: installation.Layout) -> None:
    if not (_HEADERS / "spank.h").exists():
        raise SiteError(
            "the plugin for --vm cannot be compiled: slurm/spank.h is missing",
            "apt-get install gcc libslurm-dev, then run this again",
        )
    fresh = place.plugin.with_suffix(".new")
    source = installation.source("spank", "vmbatch.c")
    run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", f'-DMARK="{_plugin_mark()}"', "-o", fresh, source], timeout_s=120)
    fresh.chmod(0o755)
    fresh.replace(place.plugin)


def _say_rest(place: installation.Layout) -> None:
    print(
        f"done; now run: scontrol reconfigure, and restart slurmd on this node\n"
        f"the plugin and {place.plugstack} belong on login nodes too\n"
        "recommended in slurm.conf: SchedulerParameters=nohold_on_prolog_fail\n"
        "after crashes and reboots: systemctl enable --now vmbatch-reap.timer\n"
        "then: vmbatch doctor"
    )


def _uninstall(place: installation.Layout) -> int:
    if place.slurm_conf.exists():
        now = place.slurm_conf.read_text()
        plain = installation.without(now)
        if plain != now:
            _show(place.slurm_conf, plain)
            _write(place.slurm_conf, plain, place.slurm_conf.stat().st_mode & 0o777)
    for path in [*installation.files(place, {}), place.plugin]:
        if path.exists():
            print(f"remove {path}")
            path.unlink()
    for folder in (place.libexec / "slurm", place.libexec):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    print(f"kept: {place.config_file}, and everything below the state folder; now run: scontrol reconfigure")
    return 0
