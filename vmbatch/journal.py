"""What stands on the node for one job, written down before it is made.

`jobs/<key>/<n>/journal.jsonl` is an ExitStack that outlives its process: the prologue pushes (`will`), the epilogue pops
(`gone`), and after a crash or a reboot the reaper pops. A line is on disk before the thing exists, so whatever stands
is written here. A torn line is one whose thing was never begun; it is passed over.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmbatch.errors import CancelledError, SiteError
from vmbatch.failpoints import reach
from vmbatch.model import SCHEMA
from vmbatch.pids import Identity, identify, kill


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that stands on the node: a kind of teardown.UNDO, its name, and what its removal needs to know."""

    kind: str
    name: str
    data: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The record of one start of one job. `directory` is .../jobs/<key>/<n>."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory.parent.name
        self.n = int(directory.name)
        self._lock: int | None = None

    @property
    def name(self) -> str:
        """What every outside thing of this start carries."""
        return f"{self.key}.{self.n}"

    @classmethod
    def begin(cls, state: Path, key: str) -> "Journal":
        """Make the journal of the job's next start; n counts up by exclusive mkdir and is never used twice."""
        parent = state / "jobs" / key
        parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        used = [n for base in ("jobs", "archive") for n in numbers(state / base / key)]
        n = max(used, default=0) + 1
        while True:
            try:
                (parent / str(n)).mkdir(mode=0o711)
                break
            except FileExistsError:
                n += 1
            except FileNotFoundError:  # another start's end took the empty parent away
                parent.mkdir(mode=0o711, exist_ok=True)
        _sync(parent)
        _sync(parent.parent)
        journal = cls(parent / str(n))
        journal._append({"schema": SCHEMA, "do": "begin", "key": key, "n": n})
        return journal

    @classmethod
    def unended(cls, state: Path, key: str) -> list["Journal"]:
        """Return the job's starts that have not ended, oldest first."""
        return [cls(state / "jobs" / key / str(n)) for n in numbers(state / "jobs" / key)]

    # --- what stands ---

    def will(self, kind: str, name: str | Path, **data: Any) -> None:
        """Write down that `name` is about to be made. Raises CancelledError once a stop has been asked for."""
        self.check()
        self._append({"do": "will", "kind": kind, "name": str(name), "data": data})
        reach(f"will:{kind}")

    def gone(self, thing: Thing) -> None:
        """Write down that a thing no longer exists."""
        reach(f"gone:{thing.kind}")
        with contextlib.suppress(OSError):  # on a full disk it is removed once more, which harms nothing
            self._append({"do": "gone", "kind": thing.kind, "name": thing.name}, sync=False)

    def note(self, what: str, **data: Any) -> None:
        """Keep a fact for people and for removal; nothing depends on its being on disk."""
        with contextlib.suppress(OSError):
            self._append({"do": what, **data}, sync=False)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines, oldest first."""
        try:
            raw = (self.directory / "journal.jsonl").read_bytes()
        except FileNotFoundError:
            return
        for line in raw.split(b"\n"):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record

    def standing(self) -> list[Thing]:
        """Return what may stand, newest first: the order of removal."""
        things: dict[tuple[str, str], Thing] = {}
        for line in self.lines():
            where = (str(line.get("kind")), str(line.get("name")))
            if line.get("do") in ("will", "gone"):
                things.pop(where, None)
            if line.get("do") == "will":
                things[where] = Thing(*where, dict(line.get("data") or {}))
        return list(reversed(things.values()))

    def facts(self, what: str) -> dict[str, Any]:
        """Return the newest note of that name, {} where there is none."""
        found: dict[str, Any] = {}
        for line in self.lines():
            if line.get("do") == what:
                found = line
        return found

    # --- start and stop keep out of each other's way ---

    def cancel(self) -> None:
        """Ask a start under way to end; it looks between its steps."""
        with contextlib.suppress(FileNotFoundError):
            (self.directory / "cancelled").touch()

    @property
    def cancelled(self) -> bool:
        return (self.directory / "cancelled").exists() or not self.directory.exists()

    def check(self) -> None:
        if self._lock_is_a_start and self.cancelled:
            raise CancelledError(f"the start of {self.name} was cancelled")

    _lock_is_a_start = False

    @contextlib.contextmanager
    def held(self, *, start: bool, grace_s: float = 0.0) -> Iterator[None]:
        """Hold the start's lock. Where another process still has it after `grace_s`, that process is killed.

        A POSIX record lock: a forked child does not inherit it, so a stopped child of a dead start keeps nobody waiting.
        """
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try(lock, grace_s):
                self._kill_holder(lock)
                if not _try(lock, 5.0):
                    raise SiteError(f"another vmbatch process holds {self.directory}/lock and cannot be killed")
            me = identify(os.getpid())
            os.ftruncate(lock, 0)
            with contextlib.suppress(OSError):  # a full disk must not keep a stop from making room
                os.pwrite(lock, f"{os.getpid()} {me.start if me else 0}".encode(), 0)
            self._lock_is_a_start = start
            yield
        finally:
            self._lock_is_a_start = False
            os.close(lock)

    def _kill_holder(self, lock: int) -> None:
        words = os.pread(lock, 100, 0).split()
        if len(words) == 2 and int(words[0]) != os.getpid():
            kill(Identity(int(words[0]), int(words[1])))

    @property
    def busy(self) -> bool:
        """Whether some process is starting or stopping this guest just now."""
        try:
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try(lock, 0)
        finally:
            os.close(lock)

    # --- the end ---

    def archive(self, state: Path) -> None:
        """Put an ended journal away. The job's directory disappears with its last start."""
        reach("stop:archive")
        target = state / "archive" / self.key
        target.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(target / str(self.n))
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def _append(self, record: dict[str, Any], sync: bool = True) -> None:
        path = self.directory / "journal.jsonl"
        fresh = not path.exists()
        line = json.dumps({**record, "t": round(time.time(), 3)}, sort_keys=True).encode() + b"\n"
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, b"\n" + line if torn else line)
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
        if fresh:
            _sync(self.directory)


def _try(lock: int, grace_s: float) -> bool:
    deadline = time.monotonic() + grace_s
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def numbers(directory: Path) -> list[int]:
    """Return the numbers that name entries of a directory, ascending; [] where it is missing."""
    try:
        return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
