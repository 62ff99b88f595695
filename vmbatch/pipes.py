"""A child of ours with a person's ids, and pipes from it to us: for work that root must not do, on data that root needs."""

import fcntl
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vmbatch.model import Person
from vmbatch.process import end_child, fork_as

AHEAD_BYTES = 1 << 20  # how much the child may be ahead of us


@contextmanager
def piped(person: Person, function: Callable[[int, int], None]) -> Iterator[tuple[int, int]]:
    """Run `function(body, words)` in a child with the person's ids; give the reading ends of these two pipes.

    The child holds nothing of ours but its ends of the pipes. It is killed when the context ends, and ends by itself as
    soon as nobody can read `body` any more, also where it is busy with something else. What comes through the pipes
    deserves no more trust than the person.
    """
    (body, into_body), (words, into_words) = os.pipe(), os.pipe()
    try:
        with suppress(OSError):  # an ordinary user may have used up what the kernel allows
            fcntl.fcntl(into_body, fcntl.F_SETPIPE_SZ, AHEAD_BYTES)
        try:
            pid = fork_as(person, lambda: _work(function, into_body, into_words), (into_body, into_words))
        finally:
            os.close(into_body)
            os.close(into_words)
        try:
            yield body, words
        finally:
            end_child(pid, 0)
    finally:
        os.close(body)
        os.close(words)


def _work(function: Callable[[int, int], None], body: int, words: int) -> None:
    threading.Thread(target=_end_with_reader, args=(body,), daemon=True).start()
    function(body, words)


def _end_with_reader(pipe: int) -> None:
    """End this process once nobody can read the pipe: poll reports that as an error, which need not be asked for."""
    waiting = select.poll()
    waiting.register(pipe, 0)
    waiting.poll()
    os._exit(1)
