"""The file that an image arrives in: written, hashed and sent to the disk while it grows, and known again later.

A note beside it (`.json`) says what it is the beginning of. It counts within one boot of the node only: after a crash
of the machine the end of a file may hold anything.
"""

import ctypes
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any

from vmbatch.accelerator import boot_id
from vmbatch.errors import SiteError

CHUNK = 1 << 18
ZEROS = bytes(CHUNK)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_AHEAD = 4  # pieces that a hash may be behind
_FLUSH_BYTES = 16 << 20
_NOTE_BYTES = 1 << 16

Piece = bytes | int  # content, or the length of a hole (at most CHUNK)


def length(piece: Piece) -> int:
    return piece if isinstance(piece, int) else len(piece)


@dataclass(frozen=True, slots=True)
class Version:
    """What a server says that a file is. Empty, None: it does not say. `url` holds no password."""

    url: str
    etag: str = ""
    last_modified: str = ""
    total: int | None = None

    @property
    def certain(self) -> bool:
        """Whether two parts with this version are surely of one file: a strong validator (RFC 9110, 8.8) and its size."""
        return self.etag.startswith('"') and self.etag.endswith('"') and len(self.etag) > 2 and self.total is not None


class Part:
    """A part file: `size` bytes of it are written and go into the hashes, all in order. Needs a lock of the caller's."""

    def __init__(self, path: Path, functions: Iterable[str]) -> None:
        """Open or make the file, mode 0600. Raises SiteError where it is something else than a file of ours."""
        self.path, self._note = path, path.with_name(path.name + ".json")
        self.size, self.version = 0, Version("")
        self.kept = 0  # how much of it an earlier transfer left
        self._functions = tuple(dict.fromkeys(functions))
        self._hashes = self._fresh()
        with _explained(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            os.close(self._file)
            raise SiteError(f"{path} is not a file of vmbatch's own", f"rm {path}")
        os.fchmod(self._file, 0o600)

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def take_up(self, url: str, told: Callable[[int], None]) -> None:
        """Go on with what an earlier transfer of the same URL left, where that is certain; it is hashed again."""
        version, there = self._read_note(), os.fstat(self._file).st_size
        if version is None or version.url != url or not version.certain or version.total is None:
            return
        self.version, edge = version, min(there, version.total - 1)  # a byte at least is left, to ask the server for
        while data := os.pread(self._file, max(0, min(CHUNK, edge - self.size)), self.size):
            for one in self._hashes.values():
                one.update(data)
            self.size = self.kept = self.size + len(data)
            told(self.size)

    def begin(self, version: Version) -> None:
        """Start anew, with a file of this version."""
        with _explained(self.path):
            self._note.unlink(missing_ok=True)
            os.ftruncate(self._file, 0)
            self.size = self.kept = 0
            self._hashes, self.version = self._fresh(), version
            if version.certain:
                text = json.dumps({**asdict(version), "boot_id": boot_id()})
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(self._note, flags, 0o600), "w") as note:
                    note.write(text)

    @contextmanager
    def growing(self) -> Iterator[Callable[[Piece], None]]:
        """Give a function that appends a piece. Every hash has its thread: hashlib frees the interpreter meanwhile."""
        _give_back()
        queues: list[Queue[Piece | None]] = [Queue(_AHEAD) for _ in self._hashes]
        threads = [
            Thread(target=_digest, args=(one, queue), daemon=True)
            for one, queue in zip(self._hashes.values(), queues, strict=True)
        ]
        for thread in threads:
            thread.start()

        def take(piece: Piece) -> None:
            for queue in queues:
                queue.put(piece)
            self._write(piece)

        try:
            yield take
        finally:
            for queue, thread in zip(queues, threads, strict=True):
                queue.put(None)
                thread.join()

    def digest(self, function: str) -> str:
        """Return the hash of the first `size` bytes, in lower-case hexadecimal digits."""
        return str(self._hashes[function].hexdigest())

    def settle(self) -> None:
        """Make the file what it is to be, on the disk; the note goes."""
        with _explained(self.path):
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)
            self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        for path in (self._note, self.path):
            path.unlink(missing_ok=True)

    def _write(self, piece: Piece) -> None:
        before = self.size
        if isinstance(piece, int):
            self.size += piece
        else:
            rest = memoryview(piece)
            with _explained(self.path):
                while rest:
                    written = os.pwrite(self._file, rest, self.size)
                    self.size += written
                    rest = rest[written:]
        begun, now = before // _FLUSH_BYTES * _FLUSH_BYTES, self.size // _FLUSH_BYTES * _FLUSH_BYTES
        if now > begun:  # the kernel begins to write what it is told will not be needed: fsync then finds little to do
            os.posix_fadvise(self._file, begun, now - begun, os.POSIX_FADV_DONTNEED)

    def _fresh(self) -> dict[str, Any]:
        return {name: hashlib.new(name, usedforsecurity=False) for name in self._functions}

    def _read_note(self) -> Version | None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            with os.fdopen(os.open(self._note, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as note:
                said = json.loads(note.read(_NOTE_BYTES))
            if said.pop("boot_id") == boot_id():
                return Version(**said)
        return None


def _give_back() -> None:
    """Have the C library give each piece's memory back at once (mallopt(3)): pieces freed by another thread than made them
    would leave holes, and memory would grow with the transfer."""
    with suppress(AttributeError, OSError):  # another C library: it may need more memory
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, CHUNK // 2)


def _digest(function: Any, queue: "Queue[Piece | None]") -> None:
    while (piece := queue.get()) is not None:
        function.update(memoryview(ZEROS)[:piece] if isinstance(piece, int) else piece)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SiteError(f"cannot write {path}: {error.strerror}", f"df -h {path.parent}") from error
