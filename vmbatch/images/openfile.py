"""An open file as a stream of pieces: its content, and its holes as lengths."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread

from vmbatch.images.part import CHUNK, Piece
from vmbatch.images.transfer import SourceError

_AHEAD = 4  # pieces that reading may be ahead
_NOTICE_S = 0.25


@contextmanager
def pieces(descriptor: int, size: int) -> Iterator[Callable[[float], Piece | None]]:
    """Give a reader of an open file. A thread reads it: a file server that hangs must not keep us from our limits."""
    ready: Queue[Piece | Exception] = Queue(_AHEAD)
    enough = Event()

    def put(piece: Piece | Exception) -> None:
        while not enough.is_set():
            with suppress(Full):
                ready.put(piece, timeout=_NOTICE_S)
                return

    def work() -> None:
        try:
            for piece in _content(descriptor, size):
                if enough.is_set():
                    return
                put(piece)
        except Exception as error:  # raised where the pieces are taken
            put(error)

    def read(timeout_s: float) -> Piece | None:
        try:
            piece = ready.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(piece, OSError):
            raise SourceError(f"it cannot be read: {piece.strerror}") from piece
        if isinstance(piece, Exception):
            raise piece
        return piece

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        enough.set()
        thread.join(2 * _NOTICE_S)


def _content(descriptor: int, size: int) -> Iterator[Piece]:
    """Yield a file's content and the lengths of its holes, in pieces of at most CHUNK, and b"" at the end."""
    place = 0
    while place < size:
        start = _seek(descriptor, place, os.SEEK_DATA, size)
        while place < start:
            hole = min(CHUNK, start - place)
            place += hole
            yield hole
        end = _seek(descriptor, place, os.SEEK_HOLE, size) if place < size else size
        while place < end:
            data = os.pread(descriptor, min(CHUNK, end - place), place)
            if not data:
                raise SourceError(f"it became shorter than {size} bytes while it was copied", "try again")
            place += len(data)
            yield data
    yield b""


def _seek(descriptor: int, place: int, what: int, size: int) -> int:
    try:
        return min(size, os.lseek(descriptor, place, what))
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end of the file
            return size
        raise
