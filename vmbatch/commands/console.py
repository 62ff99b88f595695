"""vmbatch console: the serial console of a job's guest."""

import argparse
import os
import sys
import time

from vmbatch import elsewhere, rundir
from vmbatch.config import load
from vmbatch.pids import Identity, identify
from vmbatch.remoteshell import show_log

NAME = "console"
HELP = "attach to the serial console of a job's guest; where that is not allowed, follow what it prints"
EXAMPLES = """\
vmbatch console 4711
vmbatch console 4711 --follow"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="job id")
    parser.add_argument("--follow", action="store_true", help="only show what the console prints, until the guest ends")


def main(options: argparse.Namespace) -> int:
    config = load(options.config)
    folder = elsewhere.here(config, options.job)
    if folder is None:
        elsewhere.overlap(options.job, "vmbatch", "logs", "--console")
        return 1
    facts = rundir.read_state(folder)
    may_attach = os.geteuid() == 0 or "session" in config.libvirt.uri
    if may_attach and not options.follow and sys.stdin.isatty() and facts.get("name"):
        os.execvp("virsh", ["virsh", "-c", config.libvirt.uri, "console", facts["name"]])
    if "pid" not in facts:
        return show_log(facts, console=True)
    return _follow(facts)


def _follow(facts: dict[str, str]) -> int:
    qemu = Identity(int(facts["pid"]), int(facts["start"]))
    with open(f"{facts['log']}/console.log", "rb") as file:
        while True:
            part = file.read(65536)
            sys.stdout.buffer.write(bytes(c for c in part if c in b"\t\n" or 32 <= c < 127))
            sys.stdout.buffer.flush()
            if not part and identify(qemu.pid) != qemu:
                return 0
            if not part:
                time.sleep(0.2)
