"""vmbatch run: the whole path in one command, as root and as an ordinary user; interrupts; old hardware; Debian."""

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leaks as scanner
import pytest
from devsite import DEV, NETWORK, VMBATCH, WORKER, Site, config_text

PYTHON_JOB = """\
#!/usr/bin/env python3
import sys, platform
print(platform.freedesktop_os_release()["ID"])
open("out", "w").write(open("in").read().upper())
sys.exit(5)
"""
pytestmark = pytest.mark.usefixtures("no_leaks")


def run(site: Site, image: str, *command: str, **options: Any) -> Any:
    return site.call("run", "--image", image, "--", *command, **{"cwd": "/tmp", **options})


def long_run(site: Site) -> "subprocess.Popen[str]":
    """Start a run that says `on` when its job runs, and goes on."""
    argv = ["run", "--image", "tiny:in=none", "--", "sh", "-c", "echo on; sleep 600"]
    return subprocess.Popen(
        [str(VMBATCH), "--config", str(site.config), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        cwd="/tmp",
    )


def test_run_brings_in_and_out_in_one_command(site: Site, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("input\n")
    done = run(site, "tiny", "sh", "-c", "cat; cat in.txt; id -u; echo r > r; exit 9", cwd=tmp_path, input="stdin\n")
    assert (done.returncode, done.stdout) == (9, "stdin\ninput\n0\n"), done.stderr
    assert (tmp_path / "r").read_text() == "r\n"


def test_run_is_quiet_where_nobody_watches_and_keeps_a_log(site: Site) -> None:
    done = run(site, "tiny:in=none", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for phase in ("plan", "slot", "disk", "context", "network", "domain", "boot", "handover"):
        assert f" {phase} " in site.log()


def test_run_shows_its_steps_on_a_terminal(site: Site) -> None:
    command = f"{VMBATCH} --config {site.config} run --image tiny:in=none -- echo done"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], cwd="/tmp", capture_output=True, text=True, check=True)
    for step in ("slot", "disk", "boot"):
        assert f"vmbatch: {step}" in shown.stdout
    assert "done\n" in shown.stdout.rpartition("vmbatch: handover")[2]


def test_one_record_a_job_says_what_ran(site: Site) -> None:
    import json

    run(site, "tiny:in=none:memory=200M", "true")
    record = json.loads(sorted(site.folder.glob("state/archive/*/*/record.json"))[-1].read_text())
    assert record["schema"] == record["guest"]["schema"] == 1
    assert record["guest"]["memory_mib"] == 200
    assert len(record["guest"]["image_sha512"]) == 128
    assert '<domain type="qemu"' in record["domain_xml"]
    assert set(record["phases_s"]) >= {"boot", "domain"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_boots_takes_the_guest_away(site: Site, number: int) -> None:
    child = long_run(site)
    jobs = site.folder / "state" / "jobs"
    while not list(jobs.glob("*/*/domain.xml")):
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    assert child.stdout is not None
    child.stdout.close()


def test_an_unknown_image_is_refused_with_the_nearest(site: Site) -> None:
    done = run(site, "tinny", "true")
    assert done.returncode == 125
    assert "there is no image 'tinny'" in done.stderr and "tiny" in done.stderr


def test_emulation_is_refused_where_the_site_did_not_allow_it(site: Site) -> None:
    site.configure(accelerator={"allow_tcg": False})
    try:
        done = run(site, "tiny:in=none", "true")
    finally:
        site.configure()
    assert done.returncode == 125
    assert "allow_tcg = true" in done.stderr


@pytest.mark.parametrize("when", ["start", "job"])
def test_ctrl_c_tears_down(site: Site, when: str) -> None:
    child = long_run(site)
    assert child.stdout is not None
    if when == "start":
        while not list(site.folder.glob("state/jobs/*/*/domain.xml")):
            time.sleep(0.02)
    else:
        assert child.stdout.readline() == "on\n"
    os.killpg(child.pid, signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130


def test_a_terminated_run_leaves_what_reap_takes_away(site: Site) -> None:
    child = long_run(site)
    assert child.stdout is not None
    assert child.stdout.readline() == "on\n"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert scanner.leaks(site) != []
    done = site.call("reap")
    assert (done.returncode, "its job is gone" in done.stdout) == (0, True), done.stdout + done.stderr


def test_four_at_once(site: Site) -> None:
    argv = [str(VMBATCH), "--config", str(site.config), "run", "--image", "tiny:in=none", "--", "hostname"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/tmp") for _ in range(4)]
    names = [one.communicate(timeout=120)[0] for one in running]
    assert [one.returncode for one in running] == [0] * 4
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_guests": 3}, "3 of 3 guests are in use"),
        ({"max_guest_memory_mib": 900}, "of 900 MiB are in use"),
    ],
)
def test_eight_at_once_where_three_fit(site: Site, limits: dict[str, int], said: str) -> None:
    site.configure(limits={**limits, "slot_timeout_s": 2})
    argv = [str(VMBATCH), "--config", str(site.config), "run", "--image", "tiny:in=none", "--", "sleep", "15"]
    try:
        running = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd="/tmp") for _ in range(8)]
        errors = [one.communicate(timeout=180)[1] for one in running]
    finally:
        site.configure()
    assert sorted(one.returncode for one in running) == [0] * 3 + [125] * 5, errors
    refused = [text for text in errors if text]
    assert len(refused) == 5
    assert all(said in text and "within 2 s" in text for text in refused), refused


def test_the_scratch_folder_is_the_jobs_and_may_vanish_under_the_guest(site: Site) -> None:
    (site.folder / "tmp" / "local").mkdir(parents=True)
    site.configure(paths={"scratch": site.folder / "tmp" / "%u-%j"})
    running = long_run(site)
    try:
        assert running.stdout is not None and running.stdout.readline() == "on\n"
        (place,) = (site.folder / "tmp").glob("*-*/*")
        assert (place / "disk0.qcow2").exists()
        subprocess.run(["rm", "-rf", place.parent], check=True)  # as batch systems do with a job's TMPDIR
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=60)
        assert list((site.folder / "tmp").glob("*-*/*")) == []
        site.configure(paths={"scratch": "%t/vmbatch"})
        done = run(site, "tiny:in=none", "true", env={**os.environ, "TMPDIR": str(site.folder / "tmp" / "local")})
        assert done.returncode == 0, done.stderr
        newest = max(site.folder.glob("state/archive/*/*/guest.json"), key=lambda file: file.stat().st_mtime)
        assert "/tmp/local/vmbatch/" in newest.read_text()
        refused = run(
            site, "tiny:in=none", "true", env={name: value for name, value in os.environ.items() if name != "TMPDIR"}
        )
        assert refused.returncode == 125 and "no TMPDIR" in refused.stderr
    finally:
        running.kill()
        site.configure()


def test_a_full_disk_is_said_with_path_and_bytes(site: Site) -> None:
    small = site.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "none", small], check=True)
    site.configure(paths={"scratch": small})
    try:
        done = run(site, "tiny:in=none", "true")
    finally:
        site.configure()
        subprocess.run(["umount", small], check=True)
    assert done.returncode == 125
    assert f"{small} has " in done.stderr and "bytes free; a guest's disk needs at least 268435456" in done.stderr


def test_the_base_is_never_written_and_keeps_its_owner(site: Site) -> None:
    base = DEV / "images" / "tiny.qcow2"
    before = (base.stat().st_mtime_ns, base.stat().st_uid, base.stat().st_mode, base.stat().st_ino)
    script = f"dd if=/dev/zero of=/big bs=1M count=20; stat -c %u {base}"
    assert run(site, "tiny:in=none", "sh", "-c", script).returncode != 127
    assert (base.stat().st_mtime_ns, base.stat().st_uid, base.stat().st_mode, base.stat().st_ino) == before


def test_dhcp_gives_the_slots_address(site: Site) -> None:
    subprocess.run(["virsh", "-q", "net-destroy", NETWORK], capture_output=True, check=False)
    subprocess.run(["virsh", "-q", "net-undefine", NETWORK], capture_output=True, check=False)
    site.configure(network={"addressing": "dhcp"})
    try:
        done = run(site, "tiny:in=none", "sh", "-c", "ifconfig eth0")
    finally:
        site.configure()
        subprocess.run(["virsh", "-q", "net-destroy", NETWORK], capture_output=True, check=False)
        subprocess.run(["virsh", "-q", "net-undefine", NETWORK], capture_output=True, check=False)
    assert f"inet addr:10.214.{4 * WORKER}.16 " in done.stdout, done.stdout + done.stderr


def test_an_old_machine_with_ide_and_e1000_only(site: Site, images: Any) -> None:
    images("tiny-generic")
    folder = site.folder / "images.d"
    folder.mkdir()
    entry = (DEV / "images.d" / "tiny-generic.toml").read_text().replace('"tiny-generic.', f'"{DEV}/images/tiny-generic.')
    (folder / "old.toml").write_text(entry + 'disk_bus = "ide"\nnic_model = "e1000"\n')
    site.configure(paths={"catalogue": folder})
    try:
        done = run(site, "old:in=none", "sh", "-c", "ls /sys/bus/pci/drivers; ls /sys/block; ls /dev/vport* /dev/vda")
    finally:
        site.configure()
    assert done.returncode != 125, done.stderr
    assert "e1000" in done.stdout and "sda" in done.stdout
    assert "vda" not in done.stdout


@pytest.fixture
def own(carol: pwd.struct_passwd, site: Site) -> Iterator[Path]:
    """A configuration of carol's own, and what her session leaves running taken away."""
    folder = Path(carol.pw_dir) / "vmb"
    folder.mkdir(exist_ok=True)
    config = folder / "vmbatch.toml"
    text = config_text(folder, folder / "run").replace('scratch = "', 'scratch = "', 1)
    config.write_text(text.replace("[network]", "[unused]").partition("[unused]")[0])
    for path in (folder, config):
        os.chown(path, carol.pw_uid, carol.pw_gid)
    yield config
    subprocess.run(["pkill", "-u", "vmbcarol"], check=False)


def test_an_ordinary_user_needs_no_root(own: Path, carol: pwd.struct_passwd, site: Site, tmp_path: Path) -> None:
    work = Path(carol.pw_dir) / "session"
    work.mkdir()
    os.chown(work, carol.pw_uid, carol.pw_gid)
    (work / "in.txt").write_text("mine\n")
    argv = [str(VMBATCH), "--config", str(own), "run", "--image", "tiny", "--",
            "sh", "-c", "id -un; cat in.txt; echo out > out; exit 4"]  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "HOME": carol.pw_dir, "USER": "vmbcarol"}
    done = subprocess.run(
        argv, cwd=work, env=env, user=carol.pw_uid, group=carol.pw_gid, extra_groups=[], capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "vmbcarol\nmine\n"), done.stderr
    assert (work / "out").stat().st_uid == carol.pw_uid
    left = [path for path in own.parent.rglob("*") if path.name in ("disk0.qcow2", "context.iso") or path.is_socket()]
    assert left == []
    processes = subprocess.run(["pgrep", "-u", "vmbcarol", "-a"], capture_output=True, text=True, check=False).stdout
    assert "qemu-system" not in processes and "ssh" not in processes


def test_a_real_debian_with_systemd_and_cloud_init(site: Site, images: Any, tmp_path: Path) -> None:
    images("debian12")
    (tmp_path / "job.py").write_text(PYTHON_JOB)
    (tmp_path / "job.py").chmod(0o755)
    (tmp_path / "in").write_text("text\n")
    done = run(site, "debian12", "./job.py", cwd=tmp_path, timeout=400)
    assert (done.returncode, done.stdout) == (5, "debian\n"), done.stderr
    assert (tmp_path / "out").read_text() == "TEXT\n"
