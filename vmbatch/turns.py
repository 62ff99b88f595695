"""The shells of one job on one node: who brings the files in (the first), who collects (the last to end).

Files of the user's own folder `mux`, locked with flock: the kernel frees the locks of a killed shell.
"""

import fcntl
import os


class Turn:
    """The shells of one job on this node: who brings the files in (the first), who collects (the last to end)."""

    def __init__(self, folder: str) -> None:
        self.mux = f"{folder}/mux"
        self.lock = os.open(f"{self.mux}/shells", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.gate = os.open(f"{self.mux}/gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        self._unlink("collected")

    def first(self) -> bool:
        """Whether nobody has brought the files in yet. Others wait here until the first one has."""
        fcntl.flock(self.gate, fcntl.LOCK_EX)
        if os.path.exists(f"{self.mux}/staged"):
            fcntl.flock(self.gate, fcntl.LOCK_UN)
            return False
        return True

    def staged(self) -> None:
        self._touch("staged")
        fcntl.flock(self.gate, fcntl.LOCK_UN)

    def last(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            return False

    def collected(self) -> None:
        self._touch("collected")

    def end(self) -> None:
        os.close(self.lock)
        os.close(self.gate)

    def _touch(self, name: str) -> None:
        os.close(os.open(f"{self.mux}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(f"{self.mux}/{name}")
        except OSError:
            pass
