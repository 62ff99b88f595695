"""Images on their way: how fast one is imported, how many jobs wait for one, how much memory it takes."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fileserver
from devsite import ROOT, VMBATCH, Site
from stage import Bench, peak_mib

JOBS = 16
Rows = dict[str, list[float]]
WAIT = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from vmbatch import config, node
from vmbatch.disk import Origin
from vmbatch.images import acquire
from vmbatch.images.acquire import Asker
asker = Asker(sys.argv[3], node.named("nobody"), lambda text: None, lambda done, total: None, lambda: None)
print("ready", flush=True)
sys.stdin.readline()
entry = acquire.get(config.load(Path(sys.argv[1])), Origin("url", sys.argv[2], "shared", "raw"), asker, Path.is_file)
print(time.time(), entry.fetched_at, flush=True)
"""


@contextmanager
def place(bench: Bench) -> Iterator[tuple[Site, fileserver.Server]]:
    site = bench.slurm.site
    folder = site.folder / "www"
    folder.mkdir(exist_ok=True)
    with fileserver.serving(folder) as server:
        yield site, server


def imported(site: Site, url: str) -> list[str]:
    return [str(VMBATCH), "--config", str(site.config), "image", "import", "-q", url]


def empty(site: Site) -> None:
    subprocess.run(["rm", "-rf", site.folder / "store"], check=True)


def p9(bench: Bench, rows: Rows, pairs: int) -> None:
    """Import of 512 MiB over loopback HTTP, checked, stored and on the disk, beside sha512sum of the same file."""
    with place(bench) as (site, server):
        (server.folder / "large.raw").write_bytes(os.urandom(1 << 20) * 512)
        for number in range(pairs):
            empty(site)
            began = time.monotonic()
            subprocess.run(imported(site, f"{server.url}/large.raw?run={number}"), check=True, stdout=subprocess.DEVNULL)
            ours = time.monotonic() - began
            began = time.monotonic()
            subprocess.run(["sha512sum", server.folder / "large.raw"], check=True, stdout=subprocess.DEVNULL)
            rows.setdefault("P9", []).append((time.monotonic() - began) / ours)
            rows.setdefault("P9-MB-per-s", []).append((512 << 20) / 1e6 / ours)
        empty(site)


def p9_memory(bench: Bench, rows: Rows, pairs: int) -> None:
    """Peak memory of an import of 10 GiB over that of one of 10 MiB, over HTTP."""
    with place(bench) as (site, server):
        for name, size in (("small.raw", 10 << 20), ("huge.raw", 10 << 30)):
            with (server.folder / name).open("wb") as file:
                file.truncate(size)
        for number in range(pairs):
            peaks = []
            for name in ("huge.raw", "small.raw"):
                empty(site)
                peaks.append(peak_mib(*imported(site, f"{server.url}/{name}?run={number}")))
            rows.setdefault("P9-memory", []).append(peaks[0] / peaks[1])
            rows.setdefault("P9-memory-mib", []).append(peaks[0])
        empty(site)


def p11(bench: Bench, rows: Rows, pairs: int) -> None:
    """Sixteen jobs want one image: GETs of the server, and seconds from its being there to the last one's start."""
    with place(bench) as (site, server):
        (server.folder / "wanted.raw").write_bytes(os.urandom(1 << 20) * 64)
        for number in range(pairs):
            empty(site)
            before, url = server.gets, f"{server.url}/wanted.raw?drip=0.01&piece=1048576&run={number}"
            argv = [sys.executable, "-I", "-c", WAIT.format(root=str(ROOT)), str(site.config), url]
            jobs = [
                subprocess.Popen([*argv, f"job{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for n in range(JOBS)
            ]
            for job in jobs:
                assert job.stdout is not None and job.stdout.readline() == "ready\n"
            ends = [[float(word) for word in job.communicate("\n")[0].split()] for job in jobs]
            rows.setdefault("P11-gets", []).append(server.gets - before)
            rows.setdefault("P11", []).append(max(end for end, _ in ends) - statistics.median(there for _, there in ends))
        empty(site)
