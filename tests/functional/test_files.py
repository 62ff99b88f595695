"""Files of the job: brought in, collected, limited, and never written outside or by another."""

import os
import pwd
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Running
from devsite import Site

from vmbatch import config, lifecycle


@pytest.fixture
def work(site: Site, alice: pwd.struct_passwd, request: pytest.FixtureRequest) -> Path:
    folder = site.folder / f"w-{request.node.name[:60]}"
    folder.mkdir()
    (folder / "in.txt").write_text("input\n")
    (folder / "data").mkdir()
    (folder / "data" / "deep file").write_text("deep\n")
    (folder / "link").symlink_to("in.txt")
    (folder / "go").write_text("#!/bin/sh\necho went $1\n")
    (folder / "go").chmod(0o750)
    os.mkfifo(folder / "pipe")
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, alice.pw_uid, alice.pw_gid)
    return folder


def owned(folder: Path, uid: int) -> None:
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {uid}


def test_the_submit_directory_goes_in_and_what_changed_comes_out(
    start: Callable[..., Running], alice: pwd.struct_passwd, work: Path
) -> None:
    job = start(alice, "tiny", work)
    before = {path: path.stat().st_ino for path in work.rglob("*") if path.is_file()}
    done = job.shell("/bin/sh", "-c", "cat in.txt link 'data/deep file'; stat -c %a go; ./go there; ls -l pipe")
    assert done.stdout == b"input\ninput\ndeep\n750\nwent there\n"
    make = "echo new > new.txt; echo more >> in.txt; mkdir -p out/sub; echo x > 'out/sub/a b'; ln -s new.txt out/l; rm go"
    assert job.shell("/bin/sh", "-c", make).returncode == 0
    assert (work / "in.txt").read_text() == "input\nmore\n"
    assert (work / "out/sub/a b").read_text() == "x\n"
    assert os.readlink(work / "out/l") == "new.txt"
    assert (work / "go").exists(), "what the job removed stays"
    unchanged = work / "data" / "deep file"
    assert before[unchanged] == unchanged.stat().st_ino, "what did not change is not written again"
    owned(work, alice.pw_uid)
    assert not list(work.glob("vmbatch-*"))


def test_only_what_in_names_goes_in(start: Callable[..., Running], alice: pwd.struct_passwd, work: Path) -> None:
    job = start(alice, "tiny:in=data:in=link", work)
    done = job.shell("/bin/sh", "-c", "find . | sort; cat link; echo out > result")
    assert done.stdout == b".\n./data\n./data/deep file\n./link\ninput\n"
    assert (work / "result").read_text() == "out\n"


def test_in_none_brings_nothing_but_the_command_itself(
    start: Callable[..., Running], alice: pwd.struct_passwd, work: Path
) -> None:
    job = start(alice, "tiny:in=none", work)
    assert job.shell("/bin/sh", "-c", "ls -A").stdout == b""
    assert job.shell("./go", "x").stdout == b"went x\n"


def test_a_missing_input_and_too_large_a_directory_say_what_to_do(
    start: Callable[..., Running], alice: pwd.struct_passwd, work: Path, site: Site
) -> None:
    done = start(alice, "tiny:in=nosuch", work).shell("true")
    assert (done.returncode, b"nosuch" in done.stderr, b"check in=" in done.stderr) == (125, True, True)
    site.configure(files={"max_input_mib": 1})
    try:
        with (work / "large").open("wb") as file:
            file.truncate(3 << 20)
        conf = config.load(site.config)
        from vmbatch.model import Job

        entry = alice
        job = Job("local", "test", "n1", "7", entry.pw_name, entry.pw_uid, entry.pw_gid, work, "tiny")
        guest = lifecycle.start(conf, job)
        done = Running(guest, alice, work).shell("true")
        assert done.returncode == 125
        assert b"holds more than the 1 MiB" in done.stderr
        assert b"in=NAME" in done.stderr and b"in=none" in done.stderr
        lifecycle.stop(conf, job.key)
    finally:
        site.configure()


def test_a_user_who_cannot_write_there_gets_a_sentence_and_code_121(
    start: Callable[..., Running], alice: pwd.struct_passwd, site: Site
) -> None:
    place = site.folder / "roots-own"
    place.mkdir()
    job = start(alice, "tiny:in=none", place)
    done = job.shell("/bin/sh", "-c", "echo x > result; exit 0")
    assert (done.returncode, list(place.iterdir())) == (121, [])
    assert b"not all files of the job could be collected" in done.stderr


def test_what_a_killed_shell_left_is_collected_by_the_stop_as_the_user(
    start: Callable[..., Running], alice: pwd.struct_passwd, work: Path, site: Site
) -> None:
    job = start(alice, "tiny", work)
    child = job.popen("/bin/sh", "-c", "echo partial > result; echo on; sleep 600")
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    lifecycle.stop(config.load(site.config), job.guest.key)
    assert (work / "result").read_text() == "partial\n"
    owned(work, alice.pw_uid)
    assert "collect" in site.log()


def test_too_much_output_is_cut_off_and_marked(site: Site, alice: pwd.struct_passwd, work: Path) -> None:
    site.configure(files={"max_output_mib": 2})
    try:
        done = site.call("run", "--image", "tiny", "--in", "none", "--", "sh", "-c",
                         "echo s > a; dd if=/dev/zero of=big bs=1M count=5 2>/dev/null", cwd=work)  # fmt: skip
    finally:
        site.configure()
    assert done.returncode == 121
    assert "larger than the site collects" in done.stderr
    note = list(work.glob("vmbatch-*-incomplete.txt"))
    assert len(note) == 1
    assert (work / "big.partial").exists() and not (work / "big").exists()


def test_several_shells_at_once_collect_once_at_the_end(
    start: Callable[..., Running], alice: pwd.struct_passwd, work: Path
) -> None:
    job = start(alice, "tiny:in=none", work)
    children = [job.popen("/bin/sh", "-c", f"sleep 0.{n}; echo {n} > out{n}") for n in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    assert sorted(path.name for path in work.glob("out*")) == ["out0", "out1", "out2", "out3"]


def test_a_home_directory_keeps_its_ssh_keys_to_itself(start: Callable[..., Running], alice: pwd.struct_passwd) -> None:
    home = Path(alice.pw_dir)
    keys = home / ".ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / "id_secret").write_text("SECRET")
    os.chown(keys, alice.pw_uid, alice.pw_gid)
    job = start(alice, "tiny", home)
    done = job.shell("/bin/sh", "-c", "ls .ssh; echo evil >> .ssh/authorized_keys; echo x > visible")
    assert b"id_secret" not in done.stdout
    assert (home / "visible").exists()
    assert not (keys / "authorized_keys").exists()
