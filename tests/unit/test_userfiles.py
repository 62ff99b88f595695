"""A user's own file: opened with the user's uid, and nothing but a regular file; kept from writers while it is looked at."""

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest

from vmbatch import node, userfiles
from vmbatch.errors import UserError
from vmbatch.model import Person

pytestmark = pytest.mark.programs
ROOT = os.geteuid() == 0


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that others than its owner may enter; pytest's own lie below one that is closed."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def person() -> Person:
    return node.named("nobody") if ROOT else node.person(os.geteuid())


def mine(person: Person, path: Path, mode: int = 0o600) -> Path:
    path.write_text("content")
    os.chown(path, person.uid, person.gid)
    path.chmod(mode)
    return path


def opened(person: Person, path: object) -> tuple[bytes, str]:
    descriptor, real = userfiles.open_as(person, str(path), 5)
    with os.fdopen(descriptor, "rb") as file:
        assert not os.get_inheritable(file.fileno())
        return file.read(), real


def test_a_users_file_is_opened_and_named_without_links(person: Person, tmp_path: Path) -> None:
    file = mine(person, tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    assert opened(person, tmp_path / "link") == (b"content", str(file))


@pytest.mark.skipif(not ROOT, reason="only root opens for others; make test runs as root")
def test_what_the_user_cannot_read_is_not_opened_by_root(person: Person, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root's")
    (tmp_path / "secret").chmod(0o600)
    with pytest.raises(UserError, match="as nobody: Permission denied"):
        opened(person, tmp_path / "secret")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "missing", "magic", "empty", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(person: Person, tmp_path: Path, kind: str) -> None:
    place = tmp_path / kind
    if kind == "folder":
        place.mkdir(mode=0o755)
    elif kind == "fifo":
        os.mkfifo(place, 0o666)
    elif kind == "loop":
        place.symlink_to(place)
    names = {"device": "/dev/zero", "magic": "/proc/self/fd/0", "empty": ""}
    began = time.monotonic()
    with pytest.raises(UserError):
        opened(person, names.get(kind, place))
    assert time.monotonic() - began < 4


def test_any_name_is_a_name_and_never_more(person: Person, tmp_path: Path) -> None:
    name = tmp_path / "a,b=c:json:{\n\x1b[2J"
    mine(person, name)
    assert opened(person, name)[0] == b"content"
    with pytest.raises(UserError) as caught:
        opened(person, tmp_path / "no\x1b[2Jsuch")
    assert "\x1b" not in str(caught.value)


def test_descriptors_do_not_pile_up(person: Person, tmp_path: Path) -> None:
    file = mine(person, tmp_path / "file")
    opened(person, file)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        opened(person, file)
        with pytest.raises(UserError):
            opened(person, tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


def test_writers_are_kept_away_and_one_that_tries_is_noticed(person: Person, tmp_path: Path) -> None:
    file = mine(person, tmp_path / "file")
    descriptor, _ = userfiles.open_as(person, str(file), 5)
    try:
        assert userfiles.hold(descriptor) and userfiles.held(descriptor)
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        assert not userfiles.held(descriptor)
        userfiles.release(descriptor)
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
    finally:
        os.close(descriptor)


def test_a_file_with_a_writer_cannot_be_held(person: Person, tmp_path: Path) -> None:
    file = mine(person, tmp_path / "file")
    descriptor, _ = userfiles.open_as(person, str(file), 5)
    with file.open("r+b"):
        assert not userfiles.hold(descriptor)
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)


@pytest.mark.skipif(not ROOT, reason="a mount of another user needs root; make test runs as root")
def test_a_file_system_that_a_user_serves_is_refused_before_root_touches_the_file(person: Person, tmp_path: Path) -> None:
    """Its server could answer the first reads, and hang the prologue or QEMU later."""
    work = Path(tempfile.mkdtemp(dir="/var/tmp"))
    os.chown(work, person.uid, person.gid)
    for name, size in (("image", 1 << 20), ("mount", 0)):
        (work / name).touch()
        os.truncate(work / name, size)
        os.chown(work / name, person.uid, person.gid)
    argv = [
        "qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={work}/image",
        "--export", f"type=fuse,id=e,node-name=f,mountpoint={work}/mount",
    ]  # fmt: skip
    server = subprocess.Popen(argv, user=person.uid, group=person.gid, extra_groups=[], cwd="/")
    try:
        daemons.wait_for(lambda: str(work) in Path("/proc/mounts").read_text(), 20, "the mount")
        with pytest.raises(UserError, match="a file system of a user's own"):
            opened(person, work / "mount")
    finally:
        server.terminate()
        server.wait()
        subprocess.run(["umount", "-l", work / "mount"], check=False, capture_output=True)
        shutil.rmtree(work)
