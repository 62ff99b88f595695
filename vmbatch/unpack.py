"""A tar stream from a guest -> files below one directory, whatever names the guest sends. Runs as the user, in a child.

Every step of a path is opened without following links; a file is written under a name of ours and renamed; links that
lead out, devices, absolute names and `..` are refused and named; memory, bytes and files are bounded.
"""

import os
import resource
import secrets
import tarfile
from contextlib import suppress
from typing import IO

_MEMORY = 1 << 30
_CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WHOLE, MISSING = 0, 3


class _Full(Exception):
    """A limit is reached: nothing more is taken."""


def note_name(facts: dict[str, str]) -> str:
    job = "".join(c if c.isalnum() or c in "._-" else "_" for c in facts.get("job", "job"))
    return f"vmbatch-{job}-incomplete.txt"


def unpack(reader: int, facts: dict[str, str]) -> int:
    """Unpack the stream below facts["workdir"]. Returns WHOLE or MISSING; what is missing is in the note beside."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    return _Unpacker(facts).run(reader)


class _Unpacker:
    def __init__(self, facts: dict[str, str]) -> None:
        self.root = os.open(facts["workdir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.closed = {".ssh"} if os.path.realpath(facts["workdir"]) == os.path.realpath(facts.get("home", "/")) else set()
        self.bytes_left = int(facts["max_output_mib"]) << 20
        self.files_left = int(facts["max_files"])
        self.note = note_name(facts)
        self.problems = 0

    def run(self, reader: int) -> int:
        try:
            with os.fdopen(reader, "rb") as stream:
                self._archive(stream)
                while stream.read(_CHUNK):  # the guest may send more than it announced: it must not block on us
                    pass
        except _Full as full:
            self._miss(str(full))
        except (tarfile.TarError, MemoryError, EOFError, ValueError) as error:
            self._miss(f"the stream from the guest is broken: {error or type(error).__name__}")
        except OSError as error:
            self._miss(f"cannot write: {error.strerror}")
        return MISSING if self.problems else WHOLE

    def _archive(self, stream: IO[bytes]) -> None:
        with tarfile.open(
            fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape", ignore_zeros=False
        ) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header of a long stream in memory
                self.files_left -= 1
                if self.files_left < 0:
                    raise _Full("there are more files than the site collects")
                self._member(archive, member)

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts or not parts or "\0" in member.name:
            self._miss(f"the guest sent a name that leads out: {member.name[:200]!a}")
        elif parts[0] in self.closed:
            self._miss(f"{member.name[:200]!a} is never collected")
        elif not (member.isreg() or member.isdir() or member.issym()):
            self._miss(f"{member.name[:200]!a} is neither a file nor a folder nor a symbolic link")
        else:
            try:
                self._write(archive, member, parts)
            except OSError as error:
                self._miss(f"cannot write {member.name[:200]!a}: {error.strerror}")

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]) -> None:
        folder = self._folder(parts if member.isdir() else parts[:-1])
        try:
            if member.isreg():
                self._file(archive, member, folder, parts[-1])
            elif member.issym():
                self._link(member, folder, parts)
        finally:
            os.close(folder)

    def _folder(self, parts: list[str]) -> int:
        """Open a folder below the root, making what is missing; a link on the way is an error, never followed."""
        here = os.dup(self.root)
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=here)
            try:
                below = os.open(part, _FOLDER, dir_fd=here)
            finally:
                os.close(here)
            here = below
        return here

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: int, leaf: str) -> None:
        fresh = f".vmbatch-{secrets.token_hex(8)}"
        out = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        target = leaf
        try:
            try:
                self._copy(archive, member, out)
            except BaseException:
                target = leaf[:240] + ".partial"
                raise
            finally:
                os.fchmod(out, member.mode & 0o777)
                os.close(out)
                os.rename(fresh, target, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh, dir_fd=folder)
            raise
        with suppress(OSError):
            os.utime(leaf, (member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)

    def _copy(self, archive: tarfile.TarFile, member: tarfile.TarInfo, out: int) -> None:
        source = archive.extractfile(member)
        left = member.size
        while source is not None and left > 0:
            data = source.read(min(left, _CHUNK))
            if not data:
                raise EOFError("it ends in the middle of a file")
            self.bytes_left -= len(data)
            if self.bytes_left < 0:
                raise _Full("the files are larger than the site collects")
            while data:
                data = data[os.write(out, data) :]
            left -= min(left, _CHUNK)

    def _link(self, member: tarfile.TarInfo, folder: int, parts: list[str]) -> None:
        steps = [step for step in member.linkname.split("/") if step not in ("", ".")]
        up = next((i for i, step in enumerate(steps) if step != ".."), len(steps))
        # `..` after a name may lead anywhere once that name is a link itself: only leading ones can be counted
        if member.linkname.startswith("/") or up > len(parts) - 1 or ".." in steps[up:]:
            self._miss(f"the link {member.name[:200]!a} leads out to {member.linkname[:200]!a}")
            return
        fresh = f".vmbatch-{secrets.token_hex(8)}"
        os.symlink(member.linkname, fresh, dir_fd=folder)
        try:
            os.rename(fresh, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(fresh, dir_fd=folder)
            raise

    def _miss(self, text: str) -> None:
        """Say what is missing, on stderr and in the note; a guest that sends a million bad names fills neither."""
        self.problems += 1
        if self.problems > 20:
            return
        line = f"not collected: {text}\n"
        with suppress(OSError):
            os.write(2, b"vmbatch: " + line.encode(errors="backslashreplace"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            note = os.open(self.note, flags, 0o644, dir_fd=self.root)
            os.write(note, line.encode(errors="backslashreplace"))
            os.close(note)
