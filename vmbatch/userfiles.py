"""A user's own files, opened with the user's uid in a child; only the open descriptor comes back. Root opens no path.

A path that leads elsewhere, changes while we look at it, or hangs on a dead file server harms nobody: what was opened is
what is looked at and used, and the child has a deadline.
"""

import array
import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
from contextlib import suppress

from vmbatch.errors import UserError
from vmbatch.model import Person, printable
from vmbatch.process import end_child, fork_as

_OPENAT2 = 437  # the same number on every architecture; see openat2(2)
_NO_MAGICLINKS = 2
_FUSE = 0x65735546
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_as(person: Person, path: str, timeout_s: float) -> tuple[int, str]:
    """Open a regular file for reading, as that person. Returns the descriptor and the path without links.

    Raises UserError where the person cannot read it, it is no regular file, or the file server does not answer.
    """
    said = printable(path, 200)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(timeout_s)
    child = fork_as(person, lambda: _serve(theirs.fileno(), path), (theirs.fileno(),))
    theirs.close()
    descriptor = -1
    try:
        answer, descriptors = _receive(ours)
        descriptor = descriptors[0] if descriptors else -1
        word, _, text = answer.decode(errors="surrogateescape").partition(" ")
        if word != "open" or descriptor < 0:
            raise UserError(f"cannot open {said} as {person.name}: {printable(text) or 'no answer'}", f"ls -lL {said}")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{said} is no regular file", f"ls -lL {said}")
        os.set_blocking(descriptor, True)
        return descriptor, text
    except BaseException as error:
        for one in descriptors if descriptor >= 0 else ():
            os.close(one)
        if isinstance(error, TimeoutError):
            raise UserError(f"{said} could not be opened within {timeout_s:g} s", "is its file server alive?") from None
        if isinstance(error, OSError):
            raise UserError(f"cannot look at {said}: {error.strerror}", f"ls -lL {said}") from None
        raise
    finally:
        ours.close()
        end_child(child, 0.5)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i", [0]).itemsize
    answer, parts, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, data in parts:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % size])
    return answer, list(found)


def _serve(channel: int, path: str) -> None:
    """In the child: open, and hand over the descriptor with the name that the kernel has for it.

    Nothing on a file system that a user's own program serves gets that far: root, and QEMU, would hang on it at will.
    """
    connection = socket.socket(fileno=channel)
    try:
        handle = _open(path)
        served = _served(handle)
        if served:
            connection.send(f"error it lies on a file system of a user's own ({served}); copy it to another one".encode())
            return
        real = os.readlink(f"/proc/self/fd/{handle}")
        rights = array.array("i", [handle])
        connection.sendmsg([b"open " + os.fsencode(real)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        connection.send(f"error {error.strerror}".encode())


def _served(handle: int) -> str:
    """Return the type of a FUSE file system, "" for all others, and for those that root has mounted. See proc(5), mountinfo.

    One that is no longer in the list, since its user has let go of the mount, is not root's.
    """
    if not _is_fuse(handle):
        return ""
    status = os.fstat(handle)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    with open("/proc/self/mountinfo", newline="\n", errors="surrogateescape") as file:
        for line in file:
            words = line.rstrip("\n").split(" ")
            if len(words) > 5 and words[2] == number and "user_id=0" in words[-1].split(","):
                return ""
    return "fuse"


def _is_fuse(handle: int) -> bool:
    """Ask the kernel (fstatfs(2)); the first word of its answer is the type on every Linux."""
    answer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).fstatfs(handle, answer):
        raise OSError(ctypes.get_errno(), "its file system does not answer")
    return int(ctypes.cast(answer, ctypes.POINTER(ctypes.c_long))[0]) == _FUSE


def _open(path: str) -> int:
    """Open without following the kernel's own links, such as /proc/self/fd/3. OSError where it cannot be opened."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    how = _How(_FLAGS, 0, _NO_MAGICLINKS)
    result = int(call(_OPENAT2, -100, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if number == errno.ENOSYS:  # a kernel before 5.6: what is opened is checked all the same
        return os.open(path, _FLAGS)
    raise OSError(number, os.strerror(number), path)


def hold(descriptor: int) -> bool:
    """Keep others from writing to an open file until release(), for as long as the kernel lets us (fcntl(2), leases).

    False: the file is being written to just now, or its file system has no leases.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel tells that somebody wants to write; held() asks
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def held(descriptor: int) -> bool:
    """Whether nobody has asked to write to the file since hold()."""
    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def release(descriptor: int) -> None:
    """Let others write again. Harmless where nothing was held."""
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
