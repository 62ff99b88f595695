"""Files into a disk image: they land as asked for, on any table; nothing runs as root, and nothing stays behind."""

import hashlib
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import things

from vmbatch.blockexport import Entry, put
from vmbatch.errors import OfferError, SiteError
from vmbatch.pids import Identity, find
from vmbatch.process import call_as

pytestmark = pytest.mark.programs
MIB = 1 << 20
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root has others do it; make test runs as root")
TABLES = {  # sfdisk's description, the partition that holds the file system, where it starts (MiB)
    "whole": ("", 0, 0),
    "mbr": ("label: dos\n2048,4096,83\n8192,,83\n", 2, 4),
    "logical": ("label: dos\n2048,2048,83\n4096,,5\n8192,,83\n", 5, 4),
    "gpt": ("label: gpt\n2048,4096\n8192,\n", 2, 4),
}
ENTRIES = (
    Entry("/vmbatch/init.sh", b"#!/bin/sh\nexit 0\n", 0o500),
    Entry("/vmbatch/host_key", b"secret\n", 0o600),
    Entry("/vmbatch/empty", b"", 0o644),
    Entry("/a/b/c/set", bytes(range(256)) * 300, 0o4755, 70000, 80000),
    Entry("/no newline at the end", b"debugfs: cat x", 0o444, 1, 2),
)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vmbatch-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def call(*argv: object, stdin: str = "", status: int = 0) -> bytes:
    done = subprocess.run([str(word) for word in argv], input=stdin.encode(), capture_output=True, timeout=60, check=False)
    assert done.returncode == status, done
    return done.stdout


def disk(place: Path, table: str = "mbr", size_mib: int = 32, name: str = "base.raw") -> Path:
    """A raw disk with an empty ext4 file system."""
    file = place / name
    with file.open("xb") as stream:
        stream.truncate(size_mib * MIB)
    description, _, start = TABLES[table]
    if description:
        call("sfdisk", "-q", file, stdin=description)
    tail = 1 if table == "gpt" else 0  # the second table
    call("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={start * MIB}", file, f"{(size_mib - start - tail) * 1024}k")
    return file


def overlay(base: Path, name: str = "overlay.qcow2") -> Path:
    file = base.with_name(name)
    call("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, file)
    file.chmod(0o600)
    return file


def flat(image: Path, format: str) -> Path:
    """What a guest would see, as a raw file."""
    if format == "raw":
        return image
    call("qemu-img", "check", "-q", "-f", format, image)
    out = image.with_suffix(".flat")
    call("qemu-img", "convert", "-f", format, "-O", "raw", image, out)
    return out


def debugfs(raw: Path, command: str, start_mib: int = 4) -> bytes:
    return call("debugfs", "-R", command, f"{raw}?offset={start_mib * MIB}")


def landed(raw: Path, entry: Entry, start_mib: int = 4) -> None:
    assert debugfs(raw, f'cat "{entry.path}"', start_mib) == entry.data
    words = debugfs(raw, f'stat "{entry.path}"', start_mib).decode().split()
    facts = {name: words[words.index(name + ":") + 1] for name in ("Type", "Mode", "User", "Group")}
    wanted = {"Type": "regular", "Mode": f"0{entry.mode:03o}", "User": str(entry.uid), "Group": str(entry.gid)}
    assert facts == wanted


def sound(raw: Path, start_mib: int = 4) -> None:
    call("e2fsck", "-f", "-n", f"{raw}?offset={start_mib * MIB}")


def daemons(place: Path) -> list[Identity]:
    """The daemons that have mounted something below a folder."""
    found = []
    for who in find("qemu-storage-daemon"):
        try:
            if str(place) in Path(f"/proc/{who.pid}/mountinfo").read_text():
                found.append(who)
        except OSError:
            continue
    return found


def wait_for_daemon(place: Path, working: threading.Thread | None = None) -> Identity:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (working is None or working.is_alive()):
        for who in daemons(place):
            return who
    raise AssertionError("the daemon was not seen")


def nothing_is_left(place: Path) -> None:
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert daemons(place) == []
    assert list(place.glob(".*")) == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_files_land_as_asked_for(table: str, format: str, place: Path) -> None:
    base = disk(place, table)
    image = base if format == "raw" else overlay(base)
    before, digest = image.stat(), hashlib.sha512(base.read_bytes()).digest()
    _, partition, start = TABLES[table]
    put(image, format, partition, ENTRIES, work=place)
    raw = flat(image, format)
    for entry in ENTRIES:
        landed(raw, entry, start)
    sound(raw, start)
    after = image.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert (hashlib.sha512(base.read_bytes()).digest() == digest) == (format == "qcow2")
    nothing_is_left(place)


def test_new_folders_belong_to_root_and_old_ones_stay_as_they_are(place: Path) -> None:
    image = disk(place)
    call("debugfs", "-w", "-f", "-", f"{image}?offset={4 * MIB}", stdin="mkdir /a\nsif /a mode 040700\nsif /a uid 7\n")
    put(image, "raw", 2, ENTRIES, work=place)
    for folder, mode, owner in (("/a", "0700", "7"), ("/a/b", "0755", "0"), ("/vmbatch", "0755", "0")):
        words = debugfs(image, f"stat {folder}").decode().split()
        assert [words[words.index(name) + 1] for name in ("Type:", "Mode:", "User:")] == ["directory", mode, owner]


def test_an_existing_file_is_replaced_and_what_a_link_leads_to_is_not(place: Path) -> None:
    image = disk(place)
    put(image, "raw", 2, [Entry("/f", b"old and longer", 0o600), Entry("/g", b"kept", 0o600)], work=place)
    call("debugfs", "-w", "-R", "symlink /link /g", f"{image}?offset={4 * MIB}")
    new = [Entry("/f", b"new", 0o644), Entry("/link", b"no link now", 0o644)]
    put(image, "raw", 2, new, work=place)
    for entry in (*new, Entry("/g", b"kept", 0o600)):
        landed(image, entry)
    sound(image)


def test_odd_names_are_names(place: Path) -> None:
    image = disk(place)
    names = ["<2>", "-w", "#x", "a b", "it's", "$(x)", "a\\b", "größe", "!", "x" * 255]
    entries = [Entry(f"/d/{name}", name.encode(), 0o600) for name in names]
    put(image, "raw", 2, entries, work=place)
    for entry in entries:
        landed(image, entry)
    sound(image)


@pytest.mark.parametrize(
    "path", ["relative", "/", "/a/", "/a//b", "/a/../b", '/a"b', "/a\nrm /b", "/a\0", "/" + "a/" * 600 + "b"]
)
def test_a_path_that_cannot_be_spelt_is_refused(path: str, place: Path) -> None:
    image = disk(place)
    before = image.read_bytes()
    with pytest.raises(SiteError, match="cannot be the path of a file in an image"):
        put(image, "raw", 2, [Entry("/first", b"", 0o600), Entry(path, b"", 0o600)], work=place)
    assert image.read_bytes() == before


@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_a_full_file_system_is_said_to_be_full(kind: str, place: Path) -> None:
    image = disk(place, size_mib=8)
    free = int(debugfs(image, "stats -h").decode().partition(f"Free {kind}:")[2].split()[0])
    data = [b"x" * ((free + 1) * 1024)] if kind == "blocks" else [b""] * (free + 1)
    with pytest.raises(OfferError, match=r"is full: .*Could not allocate"):
        put(image, "raw", 2, [Entry(f"/{n}", one, 0o600) for n, one in enumerate(data)], work=place)
    nothing_is_left(place)


def test_a_file_in_the_place_of_a_folder_is_named(place: Path) -> None:
    image = disk(place)
    put(image, "raw", 2, [Entry("/vmbatch", b"", 0o600)], work=place)
    with pytest.raises(OfferError, match="not a directory"):
        put(image, "raw", 2, ENTRIES, work=place)


def test_other_file_systems_are_named(place: Path) -> None:
    image = disk(place, "whole")
    with image.open("r+b") as stream:
        stream.write(bytes(4096))
    with pytest.raises(OfferError, match="none known; ext2, ext3 and ext4 can be used"):
        put(image, "raw", 0, ENTRIES, work=place)
    call("mkswap", image)
    with pytest.raises(OfferError, match=f"{image} holds no file system that vmbatch can write into: swap space"):
        put(image, "raw", 0, ENTRIES, work=place)
    nothing_is_left(place)


def test_a_partition_that_is_not_there_is_refused_with_those_that_are(place: Path) -> None:
    image = overlay(disk(place))
    with pytest.raises(OfferError, match="has no partition 3; it has: 1, 2"):
        put(image, "qcow2", 3, ENTRIES, work=place)
    with pytest.raises(OfferError, match=r"partition 1 of .* holds no file system"):
        put(image, "qcow2", 1, ENTRIES, work=place)
    with pytest.raises(OfferError, match=r"overlay.qcow2 holds no file system"):
        put(image, "qcow2", 0, ENTRIES, work=place)


def test_a_journal_is_replayed_first(place: Path) -> None:
    base = disk(place)
    block = place / "block"
    block.write_bytes(b"from the journal".ljust(1024, b"."))
    call("debugfs", "-w", "-f", "-", f"{base}?offset={4 * MIB}", stdin=f"jo -c\njw -b 20000 {block}\njc\n")
    assert b"needs_recovery" in debugfs(base, "stats -h")
    image = overlay(base)
    put(image, "qcow2", 2, ENTRIES, work=place)
    raw = flat(image, "qcow2")
    assert raw.read_bytes()[4 * MIB + 20000 * 1024 :].startswith(b"from the journal")
    assert b"needs_recovery" not in debugfs(raw, "stats -h")
    landed(raw, ENTRIES[0])
    sound(raw)


def test_a_file_system_that_only_a_person_can_mend_is_refused(place: Path) -> None:
    image = disk(place)
    put(image, "raw", 2, [Entry("/f", b"x" * 1024, 0o600), Entry("/g", b"x" * 1024, 0o600)], work=place)
    block = debugfs(image, "blocks /f").decode().strip()
    faults = f"sif /g flags 0\nsif /g block[0] {block}\nssv state 2\n"  # two files have one block
    call("debugfs", "-w", "-f", "-", f"{image}?offset={4 * MIB}", stdin=faults)
    with pytest.raises(OfferError, match=r"was not unmounted, and e2fsck cannot mend it: .*run e2fsck on it"):
        put(image, "raw", 2, ENTRIES, work=place)
    assert b"vmbatch" not in debugfs(image, "ls /")
    nothing_is_left(place)


def test_a_file_of_another_kind_or_format_is_not_opened(place: Path) -> None:
    image = disk(place)
    (place / "link").symlink_to(image)
    os.mkfifo(place / "pipe")
    with pytest.raises(SiteError, match="cannot open"):
        put(place / "link", "raw", 2, ENTRIES, work=place)
    with pytest.raises(SiteError, match="no regular file"):
        put(place / "pipe", "raw", 2, ENTRIES, work=place)
    for format in ("qcow2", "vmdk"):
        with pytest.raises(SiteError, match=f"not what was expected: an image of format {format}"):
            put(image, format, 2, ENTRIES, work=place)
    nothing_is_left(place)


@only_root
def test_a_base_that_is_closed_to_others_is_an_image_to_mend(place: Path) -> None:
    base = disk(place)
    base.chmod(0o600)
    with pytest.raises(OfferError, match=r"Permission denied.*must be readable by everybody"):
        put(overlay(base), "qcow2", 2, ENTRIES, work=place)


def large(place: Path) -> Path:
    return overlay(disk(place, size_mib=48))


LARGE = (Entry("/large", b"x" * (8 * MIB), 0o600),)


def in_background(image: Path, place: Path, errors: list[Exception]) -> threading.Thread:
    def work() -> None:
        try:
            put(image, "qcow2", 2, LARGE, work=place)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@only_root
def test_the_daemon_is_not_root_and_its_mount_is_its_own(place: Path) -> None:
    errors: list[Exception] = []
    image = large(place)
    working = in_background(image, place, errors)
    daemon = wait_for_daemon(place, working)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    limits = Path(f"/proc/{daemon.pid}/limits").read_text()
    ours = Path("/proc/self/mountinfo").read_text()
    lent = image.stat()
    folder = next(place.glob(".*")).stat()
    working.join()
    assert errors == []
    ids = {line.split()[0]: line.split()[1:] for line in status.splitlines() if line}
    group = ids["Gid:"][0]
    assert ids["Uid:"] == ["65534"] * 4 and ids["Gid:"] == [group] * 4 and ids["Groups:"] == []
    assert int(ids["CapEff:"][0], 16) == 0 and int(group) > 2**30
    assert (lent.st_uid, lent.st_gid, stat.S_IMODE(lent.st_mode)) == (0, int(group), 0o660)
    assert (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode)) == (0, int(group), 0o710)
    assert all(f"{limit:26}unlimited" not in limits for limit in ("Max cpu time", "Max data size", "Max file size"))
    assert str(place) not in ours
    landed(flat(image, "qcow2"), LARGE[0])


def test_nothing_is_left_when_the_daemon_is_killed(place: Path) -> None:
    errors: list[Exception] = []
    image = large(place)
    before = image.stat()
    working = in_background(image, place, errors)
    os.kill(wait_for_daemon(place, working).pid, signal.SIGKILL)
    working.join(60)
    assert not working.is_alive()
    assert [type(error) for error in errors] == [SiteError], errors
    after = image.stat()
    assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)
    nothing_is_left(place)


@pytest.mark.parametrize("user", [False, pytest.param(True, marks=only_root)], ids=["same", "user"])
def test_the_daemon_ends_when_we_are_killed(user: bool, place: Path) -> None:
    image = large(place)
    if user:
        for path in (place, image):
            os.chown(path, things.PERSON.uid, things.PERSON.gid)
    pid = os.fork()
    if pid == 0:
        try:
            if user:
                os.setresgid(things.PERSON.gid, things.PERSON.gid, things.PERSON.gid)
                os.setresuid(things.PERSON.uid, things.PERSON.uid, things.PERSON.uid)
            put(image, "qcow2", 2, LARGE, work=place)
        finally:
            os._exit(1)
    daemon = wait_for_daemon(place)
    end = os.pidfd_open(daemon.pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ended, _, _ = select.select([end], [], [], 20)
    os.close(end)
    assert ended
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


def test_two_at_once_do_not_meet(place: Path) -> None:
    base = disk(place)
    images = [overlay(base, f"overlay{n}.qcow2") for n in range(4)]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            put(images[number], "qcow2", 2, [Entry("/vmbatch/own", b"%d" % number, 0o600)], work=place)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number, image in enumerate(images):
        landed(flat(image, "qcow2"), Entry("/vmbatch/own", b"%d" % number, 0o600))
    nothing_is_left(place)


def test_an_image_in_use_is_refused(place: Path) -> None:
    image = large(place)
    errors: list[Exception] = []
    working = in_background(image, place, errors)
    wait_for_daemon(place, working)
    with pytest.raises(SiteError, match="lock"):
        put(image, "qcow2", 2, ENTRIES, work=place)
    working.join()
    assert errors == []


@only_root
def test_an_ordinary_user_can_do_it_too(place: Path) -> None:
    image = overlay(disk(place))
    for path in (place, image):
        os.chown(path, things.PERSON.uid, things.PERSON.gid)
    assert call_as(things.PERSON, lambda: put(image, "qcow2", 2, ENTRIES, work=place), 60) == 0
    for entry in ENTRIES:
        landed(flat(image, "qcow2"), entry)
    nothing_is_left(place)
