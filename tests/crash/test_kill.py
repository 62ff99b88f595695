"""kill -9 of the real process at each registered failpoint, against the real libvirt: one more stop, and nothing stands."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fileserver
import leaks as scanner
import pytest
from devsite import NETWORK, ROOT, VMBATCH, Site
from seconddisk import machine

from vmbatch import config, lifecycle

STEPS = re.findall(r'events\.step\(journal, "(\w+)"\)', (ROOT / "vmbatch/lifecycle.py").read_text())
START_STEPS = [name for name in STEPS if name != "collect"]
KINDS = ["dir", "link", "slot", "lease", "file", "filter", "domain", "ssh"]
STARTS = [f"step:{name}" for name in START_STEPS] + [f"will:{kind}" for kind in KINDS]
STOPS = ["stop:cancelled", "stop:locked", "stop:archive"] + [f"gone:{kind}" for kind in KINDS if kind != "ssh"]


IN_THE_STORE = ["store:fetch", "store:publish", "store:once", "store:evict"]


def killed(site: Site, failpoint: str, *command: str) -> None:
    """Run vmbatch until it kills itself at the failpoint."""
    site.configure(testing={"failpoint": f"{failpoint}:kill"})
    done = subprocess.run(
        [str(VMBATCH), "--config", str(site.config), *command], cwd="/tmp", capture_output=True, timeout=120, check=False
    )
    site.configure()
    assert done.returncode == -signal.SIGKILL, f"{failpoint} was not reached: {done.stderr.decode()}"


def stop_all(site: Site) -> None:
    conf = config.load(site.config)
    for folder in list((site.folder / "state" / "jobs").iterdir()):
        lifecycle.stop(conf, folder.name)


def nothing_stands(site: Site) -> None:
    deadline = time.monotonic() + 3
    while scanner.leaks(site) and time.monotonic() < deadline:  # a libvirt call of the dead process may still be under way
        stop_all(site)
    assert scanner.leaks(site) == []


@pytest.mark.parametrize("failpoint", STARTS)
def test_a_start_that_is_killed(site: Site, failpoint: str) -> None:
    killed(site, failpoint, "run", "--image", "tiny:in=none", "--", "true")
    stop_all(site)
    nothing_stands(site)


@pytest.mark.parametrize("failpoint", STOPS)
def test_a_stop_that_is_killed(site: Site, failpoint: str) -> None:
    killed(site, "step:boot", "run", "--image", "tiny:in=none", "--", "true")
    assert any(text.startswith("process") for text in scanner.leaks(site))
    killed(site, failpoint, "reap")
    stop_all(site)
    nothing_stands(site)


def test_a_stop_that_is_killed_when_it_has_ended_the_shared_connection(site: Site) -> None:
    killed(site, "gone:ssh", "run", "--image", "tiny:in=none", "--", "true")
    stop_all(site)
    nothing_stands(site)


@pytest.fixture
def fetching(site: Site) -> Iterator[None]:
    """An image `net` of the site that comes from a server, and a disk that is made once."""
    folder = site.folder / "www"
    folder.mkdir(exist_ok=True)
    with fileserver.serving(folder) as server:
        url = server.put("net.raw", b"fetched\n".ljust(1 << 20, b"\0"))
        once = "<vbdisksource source='kept' size='10' create='once' format='raw'/><target dev='vdc' bus='virtio'/>"
        first = f"<vbdisksource source='{url}' copy_method='shared' format='raw'/>"
        between = "<target dev='vdb' bus='virtio'/></disk><disk type='file' device='disk'>"
        machine(site, "net", first + between + once.partition("<target")[0], target="vdc")
        yield
    subprocess.run(["rm", "-rf", site.folder / "store"], check=True)


@pytest.mark.parametrize("failpoint", ["store:fetch", "store:publish", "store:once"])
def test_a_start_that_is_killed_in_the_store_leaves_it_whole(site: Site, fetching: None, failpoint: str) -> None:
    killed(site, failpoint, "run", "--image", "net:in=none", "--", "true")
    stop_all(site)
    nothing_stands(site)
    done = site.call(
        "run", "--image", "net:in=none", "--", "sh", "-c", "head -1 /dev/vdb; cat /sys/block/vdc/size", cwd="/tmp"
    )
    assert done.stdout == f"fetched\n{10 * 2048}\n", done.stderr
    assert site.call("image", "verify").returncode == 0
    assert [file.name for file in (site.folder / "store/parts").iterdir()] == []


def test_an_eviction_that_is_killed_only_costs_another_transfer(site: Site, fetching: None) -> None:
    run = ("run", "--image", "net:in=none", "--", "head", "-1", "/dev/vdb")
    assert site.call(*run, cwd="/tmp").stdout == "fetched\n"
    killed(site, "store:evict", "image", "gc", "--unused")
    assert site.call(*run, cwd="/tmp").stdout == "fetched\n"
    assert site.call("image", "verify").returncode == 0


def test_every_failpoint_of_the_code_is_tested() -> None:
    text = "".join(path.read_text() for path in (ROOT / "vmbatch").rglob("*.py"))
    stops = {name for name in STOPS if name.startswith("stop:")}
    assert set(re.findall(r'reach\("([^"]+)"\)', text)) == stops | set(IN_THE_STORE)
    assert set(re.findall(r'\.will\(\s*"(\w+)"', text)) == set(KINDS)


def test_a_lost_state_folder_is_no_lost_domain(site: Site) -> None:
    killed(site, "step:boot", "run", "--image", "tiny:in=none", "--", "true")
    journal = next((site.folder / "state" / "jobs").glob("*/*/journal.jsonl"))
    journal.unlink()
    subprocess.run(["rm", "-rf", site.folder / "state" / "jobs"], check=True)
    done = site.call("reap")
    assert "no journal knows it" in done.stdout, done.stderr
    assert not [text for text in scanner.leaks(site) if text.startswith(("domain", "process"))]
    subprocess.run(["rm", "-rf", site.folder / "state", site.run_dir, site.folder / "scratch"], check=True)
    subprocess.run(["nft", "delete", "table", "bridge", NETWORK], check=False)


def test_a_reboot_is_noticed_by_the_boot_id(site: Site) -> None:
    killed(site, "step:boot", "run", "--image", "tiny:in=none", "--", "true")
    guest = next((site.folder / "state" / "jobs").glob("*/*/guest.json"))
    guest.write_text(re.sub(r'"boot_id": "[^"]+"', '"boot_id": "before"', guest.read_text()))
    assert "the node was rebooted" in site.call("reap").stdout
    nothing_stands(site)


def test_a_stop_ends_a_start_that_is_under_way(site: Site) -> None:
    running = subprocess.Popen(
        [str(VMBATCH), "--config", str(site.config), "run", "--image", "tiny:in=none", "--", "true"],
        cwd="/tmp", stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    jobs = site.folder / "state" / "jobs"
    while not list(jobs.glob("*/*/domain.xml")):
        time.sleep(0.02)
    began = time.monotonic()
    stop_all(site)
    assert time.monotonic() - began < 15
    assert "was cancelled" in running.communicate(timeout=30)[1]
    assert running.returncode == 125
    nothing_stands(site)


@pytest.mark.parametrize("what", ["qemu", "start"])
def test_a_stop_does_not_wait_for_something_that_hangs(site: Site, what: str) -> None:
    running = subprocess.Popen(
        [str(VMBATCH), "--config", str(site.config), "run", "--image", "tiny:in=none", "--", "true"],
        cwd="/tmp", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    site.configure(limits={"stop_timeout_s": 2})
    try:
        pids: list[int] = []
        while not pids:
            pids = [pid for pid, words in scanner._processes() if "qemu-system" in words and str(site.folder) in words]
        os.kill(pids[0], signal.SIGSTOP)
        if what == "start":
            os.kill(running.pid, signal.SIGSTOP)
        began = time.monotonic()
        stop_all(site)
        assert time.monotonic() - began < 10
    finally:
        running.kill()
        running.wait()
        site.configure()
    nothing_stands(site)
    assert Path(f"/proc/{pids[0]}").exists() is False or scanner.leaks(site) == []
