"""What users bring never leads root, or QEMU, to anything but what was looked at."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import things

from vmbatch import node
from vmbatch.config import Config
from vmbatch.disk import Disk, Origin, Own
from vmbatch.errors import UserError
from vmbatch.images import acquire, own, supply
from vmbatch.images.acquire import Asker
from vmbatch.journal import Thing
from vmbatch.model import Guest, Person
from vmbatch.teardown import _dir

pytestmark = [pytest.mark.programs, pytest.mark.skipif(os.geteuid() != 0, reason="root's part; make test runs as root")]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def person() -> Person:
    return node.named("nobody")


@pytest.fixture
def conf(home: Path) -> Config:
    return things.site(home, f'store = "{home}/store"\n')


def guest(conf: Config, person: Person, home: Path) -> Guest:
    (home / "scratch").mkdir(exist_ok=True)
    return replace(things.guest(conf), person=person, scratch=home / "scratch")


def asker(person: Person) -> Asker:
    return Asker("test", person, lambda text: None, lambda done, total: None, lambda: None)


def image(home: Path, person: Person, format: str) -> Path:
    raw, file = home / "raw", home / f"my.{format}"
    raw.write_bytes(b"mine".ljust(1 << 20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, raw, file], check=True)
    os.chown(file, person.uid, person.gid)
    file.chmod(0o600)
    return file


def disk(home: Path, file: Path, use: str) -> Disk:
    origin = Origin(
        "own", str(file), "shared", by_user=True, max_mib=100, formats=("raw", "qcow2", "vmdk"), paths=(str(home),)
    )
    return Disk("image", 0, "vda", "virtio", use, home / "scratch/disk0", None, None, None, origin, group="disk0")


@pytest.mark.parametrize(
    ("format", "use", "writer", "copied"),
    [
        ("raw", "overlay", True, False),
        ("qcow2", "overlay", False, False),
        ("qcow2", "overlay", True, True),
        ("qcow2", "readonly", True, True),
        ("raw", "copy", False, True),
        ("qcow2", "copy", False, True),
        ("vmdk", "overlay", False, True),
    ],
)
def test_an_image_is_used_open_or_copied_from_the_descriptor(
    conf: Config, person: Person, home: Path, format: str, use: str, writer: bool, copied: bool
) -> None:
    file = image(home, person, format)
    held: dict[str, int] = {}
    mode = "r+b" if writer else "rb"
    with file.open(mode):
        made = own.image(conf, guest(conf, person, home), disk(home, file, use), asker(person), held)
    assert (made.base is None) == copied and ("disk0" in held) != copied
    if copied:  # nothing of it leads to the user's path any more
        assert (made.group, made.use) == (None, "readonly" if use == "readonly" else "direct")
        status = made.file.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
    for descriptor in held.values():
        os.close(descriptor)


def test_a_colleagues_file_is_never_kept_from_its_owner(conf: Config, person: Person, home: Path) -> None:
    file = image(home, person, "qcow2")
    os.chown(file, 1, 1)
    file.chmod(0o644)
    held: dict[str, int] = {}
    made = own.image(conf, guest(conf, person, home), disk(home, file, "overlay"), asker(person), held)
    assert made.use == "direct" and not held
    os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))


def test_an_image_of_the_sites_in_the_users_place_is_used_open_and_settled(conf: Config, person: Person, home: Path) -> None:
    file = image(home, person, "qcow2")
    os.chown(file, 0, 0)
    file.chmod(0o644)
    held: dict[str, int] = {}
    planned = guest(conf, person, home)
    made = own.image(conf, planned, disk(home, file, "overlay"), asker(person), held)
    supply.settled(replace(planned, disks=(made,)), held)
    os.close(held["disk0"])


def test_a_users_own_image_that_is_written_to_after_the_look_is_refused(conf: Config, person: Person, home: Path) -> None:
    file = image(home, person, "qcow2")
    held: dict[str, int] = {}
    planned = guest(conf, person, home)
    made = own.image(conf, planned, disk(home, file, "overlay"), asker(person), held)
    supply.settled(replace(planned, disks=(made,)), held)
    with pytest.raises(BlockingIOError):
        os.open(file, os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match="was written to while the job started"):
        supply.settled(replace(planned, disks=(made,)), held)
    os.close(held["disk0"])


def test_a_kernel_that_does_not_fit_on_the_disk_is_refused(conf: Config, person: Person, home: Path) -> None:
    kernel = home / "kernel"
    with kernel.open("wb") as sparse:
        sparse.truncate(600 << 20)
    os.chown(kernel, person.uid, person.gid)
    with pytest.raises(UserError, match="allowed are at most 512 MiB"):
        own.boot_file(conf, guest(conf, person, home), Own(str(kernel), None, ()), home / "out", asker(person))


def test_a_password_in_an_address_is_told_to_nobody(conf: Config) -> None:
    assert acquire.named(Origin("url", "https://me:s3cret@h.example.org/a?key=k3y", "shared")) == "https://h.example.org/a"


# --- what a user may do to his folder below ours ---


@pytest.mark.parametrize("name", [b"a\rb\rc", b"a b", b"\\040", b"plain"])
def test_a_mount_of_any_name_in_the_jobs_folder_is_taken_away(home: Path, name: bytes) -> None:
    folder = home / "run"
    place = os.path.join(os.fsencode(folder), b"mux", name)
    os.makedirs(place)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        _dir(Thing("dir", str(folder)), None)  # type: ignore[arg-type]
        assert not folder.exists()
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def test_a_folder_that_is_filled_while_it_is_emptied_goes_all_the_same(home: Path, person: Person) -> None:
    folder = home / "run"
    (folder / "mux").mkdir(parents=True)
    os.chown(folder / "mux", person.uid, person.gid)
    loop = 'cd "$0" && n=0; while : > f$n; do n=$((n + 1)); mkdir d$n 2> /dev/null; done'
    child = subprocess.Popen(["sh", "-c", loop, folder / "mux"], user=person.uid, stderr=subprocess.DEVNULL)
    try:
        while len(os.listdir(folder / "mux")) < 50:
            pass
        _dir(Thing("dir", str(folder)), None)  # type: ignore[arg-type]
        assert not folder.exists()
    finally:
        child.kill()
        child.wait()


def test_looking_at_leases_never_meets_one_that_goes(conf: Config) -> None:
    from vmbatch.images import once, store
    from vmbatch.teardown import Tools, _lease

    file = conf.paths.store / "once/user-1/x.raw"
    tools = Tools(conf, None)  # type: ignore[arg-type]
    stop = threading.Event()

    def come_and_go() -> None:
        from vmbatch.process import locked

        lease = store.lease_file(conf.paths.state, file, "job")
        while not stop.is_set():
            with locked(conf.paths.state / "leases"):
                store.write_lease(lease, "reader")
            _lease(Thing("lease", str(lease)), tools)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        from vmbatch.process import locked

        for _ in range(500):
            with locked(conf.paths.state / "leases"):
                assert set(once.roles(conf, file).values()) <= {"reader"}
    finally:
        stop.set()
        other.join()
