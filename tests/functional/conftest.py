"""Guests that several tests share, and the job's shell as a scheduler would call it."""

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daemons
import fileserver
import pytest
from devsite import WORKER, Site
from slurmsite import SlurmSite, slurm_site

from vmbatch import config, lifecycle, rundir
from vmbatch.model import Guest, Job


@dataclass
class Running:
    """A guest that runs, and its owner."""

    guest: Guest
    owner: pwd.struct_passwd
    workdir: Path

    def popen(self, *words: bytes | str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start the job's shell as the owner."""
        env = {
            b"PATH": b"/usr/local/bin:/usr/bin:/bin",
            b"HOME": os.fsencode(self.owner.pw_dir),
            **options.pop("env", {}),
            b"VMBATCH_GUEST": os.fsencode(self.guest.run_dir),
        }
        user = options.pop("user", self.owner.pw_uid)
        options.setdefault("cwd", self.workdir)
        options.setdefault("stdin", subprocess.DEVNULL)
        argv = [sys.executable, "-I", "-m", "vmbatch.remoteshell", *words]
        return subprocess.Popen(
            argv, env=env, user=user, group=user, extra_groups=[], **{"stdout": -1, "stderr": -1, **options}
        )

    def shell(self, *words: bytes | str, input: bytes | None = None, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run the job's shell as the owner, to its end."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        timeout = options.pop("timeout", 120)
        child = self.popen(*words, **options)
        out, err = child.communicate(input, timeout)
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def facts(self) -> dict[str, str]:
        return rundir.read_state(self.guest.run_dir)


@pytest.fixture(scope="module")
def start(site: Site) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a guest for a user; all are stopped at the end of the module."""
    conf = config.load(site.config)
    started: list[str] = []
    numbers = iter(range(1000 + 10000 * WORKER, 10000 * (WORKER + 1)))

    def begin(owner: pwd.struct_passwd, request: str = "tiny", workdir: Path | None = None) -> Running:
        number = str(next(numbers))
        place = workdir or site.folder / f"work{number}"
        if workdir is None:
            place.mkdir()
            os.chown(place, owner.pw_uid, owner.pw_gid)
        job = Job("local", "test", "n1", number, owner.pw_name, owner.pw_uid, owner.pw_gid, place, request)
        started.append(job.key)
        return Running(lifecycle.start(conf, job), owner, place)

    yield begin
    for key in started:
        lifecycle.stop(conf, key)


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[fileserver.Server]:
    """A web server that offers what tests put into its folder."""
    folder = site.folder / "www"
    folder.mkdir()
    with fileserver.serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def slurm(processes: daemons.Daemons, libvirt: None, images: Any) -> Iterator[SlurmSite]:
    """A Slurm of two nodes with vmbatch and its plugin."""
    images("tiny")
    with slurm_site(processes) as made:
        yield made


@pytest.fixture
def work(alice: pwd.struct_passwd, slurm: SlurmSite) -> Iterator[Path]:
    """alice's folder for one test. After it the nodes are idle, and nothing of any job stands."""
    yield slurm.folder(alice)
    slurm.settle()
