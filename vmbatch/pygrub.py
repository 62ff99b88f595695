"""pygrub-vmbatch: the boot loader of a Xen guest, for `<bootloader>` of libvirt and xl. It is pygrub with two corrections.

- A FAT that fills a disk, or another file system with boot code in its first sector, ends in 55 AA like an MBR, and pygrub
  takes that code for a partition table. Hybrid ISOs have a table indeed, but their files lie outside of it. pygrub is told
  `--offset=0` there.
- The parameters of `--args` stand on the kernel's line also where pygrub leaves them away, as Xen 3's does.

The command line is pygrub's; `--pygrub=FILE` names another pygrub than the one that is found. There is never a menu: a
batch job has nobody at its console. root runs this on a disk that somebody else made: only the partition table is read
here. File systems are read by pygrub, which gives up root before that where it is called with `--runas=UID`.
"""

import ast
import getopt
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vmbatch import partitions
from vmbatch.errors import SiteError
from vmbatch.model import printable
from vmbatch.process import run

_USAGE = "usage: pygrub-vmbatch [--pygrub=FILE] [pygrub's options] DISK"
_FLAGS = ["quiet", "interactive", "list-entries", "not-really", "help", "isconfig", "debug"]
_VALUES = ["output", "output-format", "output-directory", "offset", "runas", "entry", "kernel", "ramdisk", "args"]
_FOLDERS = (
    "usr/lib/xen-*/bin",  # Debian; the newest one is taken
    "usr/lib/xen/bin",
    "usr/lib64/xen/bin",
    "usr/libexec/xen/bin",
    "usr/bin",
    "usr/local/lib/xen/bin",
    "usr/local/libexec/xen/bin",
    "usr/local/bin",
)
_DEADLINE_S = 300.0  # for copying a kernel and an initial file system out of a disk
# pygrub ends when we do, killed or ended before `run` knows its child: libxl kills who is late, and takes our files away.
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_SEPARATORS = {"simple": "\n", "simple0": "\0"}
_PARAMETER = re.compile(r'(?:[^\s"]|"[^"]*"?)+')  # as the kernel splits its line: space within quotes does not count
_FIELD = re.compile(r"""\((kernel|ramdisk|args) ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^()'"\s]+)\)""")


@dataclass(frozen=True, slots=True)
class Call:
    """What the caller wants. `output` is None for standard output; `rest` is for pygrub."""

    disk: Path
    pygrub: Path | None
    output: Path | None
    output_format: str
    args: str
    offset: bool  # the caller says where the file system begins
    rest: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    """Returns pygrub's exit code; 1 where it could not be asked, with a sentence on standard error."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        call = parse(words)
        return _boot(call) if call else _help()
    except SiteError as error:
        print(f"pygrub-vmbatch: {error}", file=sys.stderr)
    except OSError as error:
        print(f"pygrub-vmbatch: cannot write {error.filename or 'the result'}: {error.strerror}", file=sys.stderr)
    return 1


def _end(number: int, _frame: object) -> NoReturn:
    """libxl gives up: leave through `process.run`, which ends pygrub and its children."""
    sys.exit(128 + number)


def _help() -> int:
    print(_USAGE)
    return 0


def parse(words: Sequence[str]) -> Call | None:
    """Read pygrub's command line; None: only help is wanted. Raises SiteError for what pygrub refuses, and for its menu."""
    try:
        options, disks = getopt.gnu_getopt(list(words), "qilnh", [*_FLAGS, *(f"{name}=" for name in (*_VALUES, "pygrub"))])
    except getopt.GetoptError as error:
        raise SiteError(str(error), _USAGE) from None
    given = dict(options)  # of an option that is repeated the last one counts, as for pygrub
    if {"-h", "--help"} & set(given):
        return None
    if not disks:
        raise SiteError("no disk is named", _USAGE)
    if {"-i", "--interactive"} & set(given):
        raise SiteError("there is no menu: a batch job has nobody at its console", "leave -i away; --entry= chooses")
    output_format = given.get("--output-format", "sxp")
    if output_format not in ("sxp", *_SEPARATORS):
        raise SiteError(f"there is no output format {output_format!r}", "--output-format=sxp, simple or simple0")
    output = given.get("--output", "-")
    return Call(
        disk=Path(disks[0]).absolute(),
        pygrub=Path(given["--pygrub"]).absolute() if "--pygrub" in given else None,
        output=None if output == "-" else Path(output),
        output_format=output_format,
        args=given.get("--args", ""),
        offset="--offset" in given,
        rest=tuple(_word(name, value) for name, value in options if name not in ("--output", "--pygrub")),
    )


def _word(name: str, value: str) -> str:
    if name == "--output-directory":
        value = str(Path(value).absolute())
    return f"{name}={value}" if name.removeprefix("--") in _VALUES else name


def _boot(call: Call) -> int:
    # Opened first: who reads a FIFO waits for its writer, and must see the end of it where pygrub fails.
    output = os.dup(1) if call.output is None else os.open(call.output, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    # pygrub's result apart from its remarks, and no file that could be left behind.
    result = os.memfd_create("pygrub")
    try:
        pygrub = call.pygrub or find()
        if not os.access(pygrub, os.X_OK):
            raise SiteError(f"{pygrub} is no program that can be run", "name another one: --pygrub=FILE")
        extra = [] if call.offset else offset(call.disk)
        own = f"--output=/proc/{os.getpid()}/fd/{result}"
        done = run([*_WITH_US, pygrub, "-q", *call.rest, *extra, own, call.disk], timeout_s=_DEADLINE_S, check=False)
        _say(done.stdout, done.stderr)
        if done.status:
            print(f"pygrub-vmbatch: {pygrub} failed with {done.status} on {call.disk}", file=sys.stderr)
            return done.status
        _write(output, _corrected(_whole(result), call))
    finally:
        os.close(result)
        os.close(output)
    return 0


def _say(stdout: bytes, stderr: bytes) -> None:
    """Pass on pygrub's remarks. They hold the disk's own words: nothing of them may steer a terminal."""
    for stream, text in ((sys.stdout, stdout), (sys.stderr, stderr)):
        stream.write(printable(text.decode(errors="replace"), 100_000))
        stream.flush()


def _whole(descriptor: int) -> bytes:
    return partitions.file_descriptor(descriptor)(0, os.fstat(descriptor).st_size)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def offset(disk: Path) -> list[str]:
    """Return what tells pygrub that a file system fills the disk; nothing where it shall read the table.

    A table that is broken is left to pygrub, which believes more than we do. Raises SiteError.
    """
    try:
        descriptor = os.open(disk, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise SiteError(f"{disk} is neither a file nor a block device", "name a disk or an image of one")
            size = os.lseek(descriptor, 0, os.SEEK_END)
            with suppress(ValueError):
                table = partitions.read(partitions.file_descriptor(descriptor), size)
                return ["--offset=0"] if table.kind == "none" or table.iso else []
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SiteError(f"cannot read the disk {disk}: {error.strerror}") from None
    return []


def find(root: Path = Path("/")) -> Path:
    """Find pygrub where distributions and Xen's own build put it. Raises SiteError."""
    for folder in _FOLDERS:
        found = sorted(root.glob(f"{folder}/pygrub"), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
        for path in reversed(found):
            if os.access(path, os.X_OK):
                return path
    raise SiteError("pygrub is not installed", "apt-get install xen-utils, or name it: --pygrub=FILE")


def _corrected(result: bytes, call: Call) -> bytes:
    if not result or not call.args:
        return result
    text = with_args(result.decode(errors="surrogateescape"), call.args, call.output_format)
    return text.encode(errors="surrogateescape")


def with_args(result: str, args: str, output_format: str) -> str:
    """Return pygrub's result with every parameter of `args` on the kernel's line; one that stands there is not added.

    What pygrub wrote itself stays as it is, also where it repeats a parameter of the disk's: of two that contradict each
    other the kernel takes the last.

    The formats are those that pygrub prints for `--output-format`: sxp `linux (kernel K)(ramdisk R)(args A)`, the values
    in Python's quotes (Xen 3: K and R bare); simple and simple0: a `name value` in each line, or before each NUL, and an
    empty one at the end. Raises SiteError where `result` is not in that format, or the parameters cannot stand in it.
    """
    if output_format == "sxp":
        return _sxp(result, args)
    separator = _SEPARATORS[output_format]
    lines = result.split(separator)
    names = [line.partition(" ")[0] for line in lines]
    if names[0] != "kernel" or "" not in names:
        raise _strange(result)
    at = names.index("args") if "args" in names else None
    added = _added(lines[at].partition(" ")[2] if at is not None else "", args)
    if separator in added:
        raise SiteError(f"--args={args!r} holds a line break, which the format {output_format} cannot hold")
    if added and at is not None:
        lines[at] += f" {added}"
    elif added:
        lines.insert(names.index(""), f"args {added}")
    return separator.join(lines)


def _sxp(result: str, args: str) -> str:
    fields = dict(_FIELD.findall(result))
    if not re.fullmatch(rf"linux (?:{_FIELD.pattern})+\s*", result):
        raise _strange(result)
    before = fields.get("args", "")
    try:
        text = ast.literal_eval(before) if before[:1] in ("'", '"') else before
    except (SyntaxError, ValueError):
        raise _strange(result) from None
    added = _added(text, args)
    if not added:
        return result
    whole = f"{text} {added}" if text else added
    if not before:
        return f"{result.rstrip()}(args {whole!r})"
    return _FIELD.sub(lambda match: f"(args {whole!r})" if match[1] == "args" else match[0], result)


def _added(line: str, args: str) -> str:
    """Those parameters of `args` that the line lacks, each once."""
    present = set(_PARAMETER.findall(line))
    missing = [one for one in dict.fromkeys(_PARAMETER.findall(args)) if one not in present]
    for name, text in (("the kernel's line of the disk", line), ("--args", args)):
        if missing and text.count('"') % 2:
            raise SiteError(f"{name} has a quote that is not closed: {printable(text, 200)}", "correct it there")
    return " ".join(missing)


def _strange(result: str) -> SiteError:
    return SiteError(f"pygrub's result is not understood: {printable(result, 200)!r}", "name another one: --pygrub=FILE")
