"""Files of the job: brought into the guest before it, collected after it. All of this runs with the user's own ids.

Both ways are tar streams through the channel. What comes from the guest is written by unpack.py, which trusts no name.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from vmbatch.channel import Channel, Command, LostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from typing import Any

REFUSED = 125
_UNPACK = b'cd "$1" && exec tar -xf -'


def say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"vmbatch: {text}\n".encode(errors="surrogateescape"))


def bring_in(channel: Channel, facts: dict[str, str], first: bool, carried: bytes) -> int:
    """Bring the input files into the guest's working directory. Returns 0, or an exit code with a sentence on stderr."""
    names = _names(facts) if first else []
    if carried and facts.get("inputs"):
        names = [*(names or []), os.fsdecode(carried)]
    if names != []:
        problem = measure(facts, names) or _send(channel, facts, names)
        if problem:
            say(problem)
            return REFUSED
    for path in _tars(facts) if first else ():
        problem = _send_tar(channel, facts, path)
        if problem:
            say(problem)
            return REFUSED
    if first:
        channel.send(b"M", b"1" if names != [] else b"")
    return 0


def _names(facts: dict[str, str]) -> list[str] | None:
    """Return the names that in= gave; None: the working directory itself."""
    if not facts.get("inputs"):
        return None
    import json

    return [str(name) for name in json.loads(facts["inputs"])]


def entries(facts: dict[str, str], names: list[str] | None) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (path, name in the archive, stat) of what is to be brought in; unreadable and special files are left out."""
    base = facts["workdir"]
    for name in names if names is not None else ["."]:
        top = os.path.join(base, name)
        yield from _entry(base, top, os.stat(top))
        if os.path.isdir(top):
            yield from _walk(base, top, facts)


def _walk(base: str, top: str, facts: dict[str, str]) -> Iterator[tuple[str, str, os.stat_result]]:
    for folder, folders, files in os.walk(top):
        if os.path.realpath(folder) == os.path.realpath(facts.get("home", "/")):
            folders[:] = [one for one in folders if one != ".ssh"]
        for leaf in [*folders, *files]:
            path = os.path.join(folder, leaf)
            with suppress(OSError):
                yield from _entry(base, path, os.lstat(path))


def _entry(base: str, path: str, status: os.stat_result) -> Iterator[tuple[str, str, os.stat_result]]:
    name = os.path.normpath(os.path.relpath(path, base))
    wanted = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
    if wanted and name != ".":
        yield path, name, status


def measure(facts: dict[str, str], names: list[str] | None) -> str:
    """Return why this cannot be brought in, "" where it can."""
    limit, most = int(facts["max_input_mib"]), int(facts["max_files"])
    size = count = 0
    advice = "name the files that the job needs with in=NAME, or bring none with in=none"
    for name in names or ():
        if os.path.relpath(os.path.join(facts["workdir"], name), facts["workdir"]).startswith(".."):
            return f"in={name} lies outside {facts['workdir']}, the directory of the job; submit from a folder above both"
    try:
        for _, _, status in entries(facts, names):
            count += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if size > limit << 20:
                return f"{facts['workdir']} holds more than the {limit} MiB that may be brought into a guest; {advice}"
            if count > most:
                return f"{facts['workdir']} holds more than the {most} files that may be brought into a guest; {advice}"
    except OSError as error:
        return f"cannot bring {error.filename} into the guest: {error.strerror}; check in= in the VM request"
    return ""


def _tars(facts: dict[str, str]) -> list[str]:
    """Return the user's tar files."""
    if not facts.get("tars"):
        return []
    import json

    return [str(path) for path in json.loads(facts["tars"])]


def _send_tar(channel: Channel, facts: dict[str, str], path: str) -> str:
    problem = _stream(channel, facts, lambda writer: _unpacked(path, writer))
    return f"the tar file {path} could not be unpacked in {facts['workdir']} of the guest" if problem else ""


def _unpacked(path: str, writer: int) -> int:
    """Write a tar file's content, without its compression, into the pipe."""
    import bz2
    import gzip
    import lzma
    import shutil

    with open(path, "rb") as raw, os.fdopen(writer, "wb") as pipe:
        head = raw.peek(6)[:6]
        stream: Any = raw
        for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
            if head.startswith(magic):
                stream = module.open(raw)
        shutil.copyfileobj(stream, pipe)
    return 0


def _send(channel: Channel, facts: dict[str, str], names: list[str] | None) -> str:
    if _stream(channel, facts, lambda writer: _pack(facts, names, writer)):
        return f"the input files could not be unpacked in {facts['workdir']} of the guest (is its disk full?)"
    return ""


def _stream(channel: Channel, facts: dict[str, str], pack: "Callable[[int], int]") -> bool:
    """Have `pack` write a tar stream, and the guest unpack it in the working directory. True: something failed."""
    reader, writer = os.pipe()
    packer = os.fork()
    if packer == 0:
        _in_child(lambda: pack(writer), keep=writer)
    os.close(writer)
    workdir = os.fsencode(facts["workdir"])
    command = Command([b"/bin/sh", b"-c", _UNPACK, b"sh", workdir], [b"PATH=/usr/bin:/bin"], b"/", 0)
    try:
        kind, code = channel.run(command, reader, 2, 2)
    finally:
        os.close(reader)
        _, status = os.waitpid(packer, 0)
    return bool(kind or code or status)


def _pack(facts: dict[str, str], names: list[str] | None, writer: int) -> int:
    import tarfile

    with (
        os.fdopen(writer, "wb") as stream,
        tarfile.open(
            fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as archive,
    ):
        for path, name, _ in entries(facts, names):
            with suppress(PermissionError, FileNotFoundError):
                if os.path.islink(path) and (names is None or name not in names):
                    archive.addfile(archive.gettarinfo(path, name))
                elif os.path.isdir(path):
                    archive.addfile(_owned(archive.gettarinfo(os.path.realpath(path), name)))
                else:
                    with open(path, "rb") as file:
                        archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), file)
    return 0


def _owned(info: "tarfile.TarInfo") -> "tarfile.TarInfo":
    """A folder must stay open to its owner, or nothing could be unpacked below it."""
    info.mode |= 0o700
    return info


def _in_child(function: "Callable[[], int]", keep: int) -> None:
    """Run a function in the child that we are; its return value is our exit status. Never returns."""
    status = 1
    try:
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        status = function()
    except BaseException as error:  # the child ends here, whatever it was; the parent reads the status
        say(f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(status)


def collect(channel: Channel, facts: dict[str, str]) -> bool:
    """Fetch what the job created or changed below its working directory. False: incomplete, and said so."""
    unpackers: list[tuple[int, int]] = []

    def start() -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            from vmbatch import unpack

            _in_child(lambda: unpack.unpack(reader, facts), keep=reader)
        os.close(reader)
        os.set_blocking(writer, False)
        unpackers.append((pid, writer))
        return writer

    whole = False
    try:
        whole = channel.collect(os.fsencode(facts["workdir"]), start, 2)
    finally:
        for pid, writer in unpackers:
            os.close(writer)
            whole = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and whole
        if not whole:
            _mark(facts)
    if whole:
        channel.send(b"Y")
    return whole


def uncollected(run_dir: Path) -> bool:
    """Whether a shell of the job brought files in (or marked the start), and none has collected since."""
    mux = os.path.join(run_dir, "mux")
    return os.path.lexists(f"{mux}/staged") and not os.path.lexists(f"{mux}/collected")


def fetch(run_dir: str, facts: dict[str, str]) -> None:
    """Collect over a connection of our own. For the epilogue, in a child that has become the user; raises on failure."""
    channel = Channel(f"{run_dir}/ssh_config", ("-o", "ControlPath=none", "-o", "ControlMaster=no"), alone=False)
    try:
        if not collect(channel, facts):
            raise OSError("the collection is not complete")
    except LostError as lost:
        _mark(facts)
        raise OSError(f"the connection to the guest broke: {lost}") from None
    finally:
        channel.close()


def _mark(facts: dict[str, str]) -> None:
    """Leave a note among the results: they are not whole."""
    from vmbatch import unpack

    note = unpack.note_name(facts)
    text = f"The files of job {facts.get('job', '')} that were collected here are not complete.\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        file = os.open(os.path.join(facts["workdir"], note), flags, 0o644)
        os.write(file, text.encode(errors="surrogateescape"))
        os.close(file)
    say(f"not all files of the job could be collected into {facts['workdir']}; see {note} there")
