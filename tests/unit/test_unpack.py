"""What comes from a guest is written below one directory, whatever names the guest sends."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbatch.unpack import MISSING, WHOLE, _Unpacker

FACTS = {"max_output_mib": "1", "max_files": "50", "job": "7", "home": "/nowhere"}


def stream(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def unpack(folder: Path, raw: bytes, **facts: str) -> int:
    file = folder.parent / "stream.tar"
    file.write_bytes(raw)
    return _Unpacker({**FACTS, "workdir": str(folder), **facts}).run(os.open(file, os.O_RDONLY))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "outside").write_text("untouched")
    return tmp_path / "work"


def outside_is_untouched(work: Path) -> None:
    assert (work.parent / "outside").read_text() == "untouched"
    assert sorted(path.name for path in work.parent.iterdir()) == ["outside", "stream.tar", "work"]


def test_files_folders_links_modes_and_times_arrive(work: Path) -> None:
    info = member("d/deep/file", mode=0o750)
    info.mtime = 1000000000
    raw = stream(
        (member("d", tarfile.DIRTYPE, mode=0o755), b""),
        (info, b"data"),
        (member("d/link", tarfile.SYMTYPE, "deep/file"), b""),
        (member("n" * 120 + "/" + "m" * 120), b"long"),
        (member("new\nline"), b"x"),
    )
    assert unpack(work, raw) == WHOLE
    file = work / "d/deep/file"
    assert (file.read_bytes(), file.stat().st_mode & 0o7777, file.stat().st_mtime) == (b"data", 0o750, 1000000000)
    assert os.readlink(work / "d/link") == "deep/file"
    assert (work / ("n" * 120) / ("m" * 120)).read_bytes() == b"long"
    assert (work / "new\nline").exists()


@pytest.mark.parametrize("name", ["/etc/x", "../outside", "d/../../outside", "..", "./../outside", "a/../../outside"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_a_name_that_leads_out_is_refused(work: Path, name: str, kind: bytes) -> None:
    assert unpack(work, stream((member(name, kind, "x"), b""), (member("good"), b"g"))) == MISSING
    outside_is_untouched(work)
    assert (work / "good").read_bytes() == b"g"
    assert "leads out" in (work / "vmbatch-7-incomplete.txt").read_text()


@pytest.mark.parametrize("link", ["/etc", "..", "../outside", "a/../../outside", "d/../x"])
def test_a_link_that_leads_out_is_refused(work: Path, link: str) -> None:
    raw = stream((member("l", tarfile.SYMTYPE, link), b""), (member("l/outside"), b"evil"))
    assert unpack(work, raw) == MISSING
    outside_is_untouched(work)
    assert not (work / "l").is_symlink()


def test_an_existing_link_of_the_users_is_not_followed(work: Path) -> None:
    (work / "l").symlink_to("..")
    (work / "f").symlink_to("../outside")
    raw = stream((member("l/outside"), b"evil"), (member("f"), b"new"))
    assert unpack(work, raw) == MISSING
    outside_is_untouched(work)
    assert (work / "f").read_bytes() == b"new" and not (work / "f").is_symlink()


def test_a_link_made_by_the_stream_is_not_followed(work: Path) -> None:
    (work / "real").mkdir()
    raw = stream((member("l", tarfile.SYMTYPE, "real"), b""), (member("l/x"), b"x"))
    assert unpack(work, raw) == MISSING
    assert not (work / "real/x").exists()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE])
def test_devices_pipes_and_hard_links_are_refused(work: Path, kind: bytes) -> None:
    status = unpack(work, stream((member("x", kind, "../outside"), b"")))
    assert status == (WHOLE if kind == tarfile.CONTTYPE else MISSING)
    outside_is_untouched(work)
    assert not (work / "x").exists() or (work / "x").is_file()


def test_set_user_id_is_dropped(work: Path) -> None:
    unpack(work, stream((member("s", mode=0o6755), b"x")))
    assert (work / "s").stat().st_mode & 0o7777 == 0o755


def test_too_many_bytes_end_the_collection_and_mark_what_is_partial(work: Path) -> None:
    raw = stream((member("small"), b"s"), (member("big"), b"b" * 3_000_000), (member("later"), b"l"))
    assert unpack(work, raw) == MISSING
    assert (work / "small").exists()
    assert (work / "big.partial").exists() and not (work / "big").exists() and not (work / "later").exists()
    assert "larger than the site collects" in (work / "vmbatch-7-incomplete.txt").read_text()


def test_too_many_files_end_the_collection(work: Path) -> None:
    assert unpack(work, stream(*((member(f"f{i}"), b"") for i in range(60)))) == MISSING
    assert len(list(work.glob("f*"))) == 50


def test_a_torn_stream_keeps_what_was_whole(work: Path) -> None:
    raw = stream((member("a"), b"a" * 5000), (member("b"), b"b" * 50000))
    assert unpack(work, raw[:20000]) == MISSING
    assert (work / "a").read_bytes() == b"a" * 5000
    assert (work / "b.partial").exists() and not (work / "b").exists()


@pytest.mark.programs
def test_a_header_that_claims_gigabytes_is_refused_in_bounded_memory(work: Path) -> None:
    bomb = member("bomb", tarfile.GNUTYPE_LONGNAME)
    raw = bytearray(stream((bomb, b"x")))
    raw[124:136] = b"77777777777\0"
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    assert run_in_child(lambda: unpack_bounded(work, bytes(raw))) == MISSING


def unpack_bounded(folder: Path, raw: bytes) -> int:
    from vmbatch import unpack as module

    file = folder.parent / "stream.tar"
    file.write_bytes(raw)
    return module.unpack(os.open(file, os.O_RDONLY), {**FACTS, "workdir": str(folder)})


def run_in_child(function: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(function())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_ssh_keys_of_the_home_are_never_written(work: Path) -> None:
    raw = stream((member(".ssh/authorized_keys"), b"evil"), (member("./.ssh/x"), b"evil"), (member("ok"), b""))
    assert unpack(work, raw, home=str(work.resolve())) == MISSING
    assert not (work / ".ssh").exists() and (work / "ok").exists()


def test_a_note_is_bounded_however_many_names_are_bad(work: Path) -> None:
    unpack(work, stream(*((member("/" + "x" * 90 + str(i)), b"") for i in range(45))))
    assert (work / "vmbatch-7-incomplete.txt").stat().st_size < 20000


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 4000), st.binary(max_size=40))
def test_any_bytes_leave_the_outside_untouched(noise: bytes, where: int, patch: bytes) -> None:
    raw = bytearray(stream((member("a/b"), b"x" * 700), (member("l", tarfile.SYMTYPE, "a"), b"")))
    raw[where : where + len(patch)] = patch
    for data in (noise, bytes(raw)):
        unpack(WORK, data)
        outside_is_untouched(WORK)


@pytest.fixture(autouse=True)
def _work(work: Path) -> None:
    global WORK
    WORK = work
