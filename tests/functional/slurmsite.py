"""A Slurm with vmbatch installed on it, for tests."""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import daemons
import leaks as scanner
from devsite import Site
from slurmcluster import CLUSTER, Cluster

WHERE = "#!/bin/bash\necho host=$(hostname) step=$SLURM_PROCID\n"


class SlurmSite:
    """One site, one cluster. `plugin` False: requests in --comment, no plugin."""

    def __init__(self, site: Site, cluster: Cluster) -> None:
        self.site, self.cluster = site, cluster

    def settle(self) -> None:
        """Wait until both nodes are idle again, and nothing of any job stands."""
        self.cluster.idle()
        left = scanner.leaks(self.site)
        assert left == [], left

    def folder(self, owner: pwd.struct_passwd) -> Path:
        """Make a folder to submit from."""
        folder = self.site.folder / f"work-{len(list(self.site.folder.glob('work-*')))}"
        folder.mkdir()
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        return folder

    def out(self, job: str, cwd: Path) -> str:
        file = cwd / f"slurm-{job}.out"
        return file.read_text() if file.exists() else ""

    def guest_ready(self, job: str, timeout_s: float = 90) -> Path:
        """Wait until the job's guest is ready; returns its folder."""
        deadline = time.monotonic() + timeout_s
        while True:
            for link in self.site.run_dir.glob(f"by-job/slurm-{CLUSTER}-*-{job}"):
                if (link / "state").exists() and (link / "state").read_text().startswith("state ready"):
                    return link.resolve()
            assert time.monotonic() < deadline, f"the guest of job {job} is not ready: {self.cluster.job(job)}"
            time.sleep(0.05)

    def says(self, file: Path, text: str, timeout_s: float = 90) -> None:
        """Wait until a file holds a text."""
        daemons.wait_for(
            lambda: file.exists() and text in file.read_text(errors="replace"), timeout_s, f"{text!r} in {file}"
        )


@contextmanager
def slurm_site(
    processes: daemons.Daemons, extra: str = "", plugin: bool = True, cpus: int = 0, **sections: dict[str, Any]
) -> Iterator[SlurmSite]:
    """Start a cluster with vmbatch on it; stop and remove everything at the end."""
    own = daemons.Daemons()
    daemons.munge(processes)
    with Site(**sections) as site:
        cluster = Cluster(site.folder / "slurm", own, extra, cpus)
        site.sections["slurm"] = {"conf": cluster.conf, "comment": not plugin}
        site.configure()
        done = site.call("install", "--scheduler", "slurm", "--prefix", site.folder / "usr")
        assert done.returncode == 0, done.stdout + done.stderr
        if not plugin:
            (cluster.folder / "plugstack.conf").write_text("")
        if "JobSubmitPlugins=lua" in extra:
            shutil.copy(site.folder / "usr/libexec/vmbatch/slurm/job_submit.lua", cluster.folder)
        try:
            yield SlurmSite(site, cluster.start())
        finally:
            cluster.call("/usr/bin/scancel", "-u", "root,vmbalice,vmbbob")
            with suppress(AssertionError):
                daemons.wait_for(lambda: not cluster.call("/usr/bin/squeue", "-h").stdout.strip(), 20, "the jobs' end")
            own.stop()
            subprocess.run(["pkill", "-9", "-f", str(site.folder / "slurm")], check=False)


def lines(text: str, pattern: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(pattern, line)]


def submit(slurm: SlurmSite, owner: pwd.struct_passwd, work: Path, script: str, *options: str) -> str:
    """sbatch a script into the tiny guest, with no input files; returns the job id."""
    return slurm.cluster.submit(script, "--vm=tiny:in=none", *options, user=owner.pw_uid, cwd=work)
