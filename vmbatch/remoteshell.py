"""The job's shell: finds the job's guest and runs the script or command there, with its streams, signals and exit code.

Exit codes: the job's own; 128+n for a signal; 120 the guest was lost or went down; 121 the job ended well but its files
could not all be collected; 125 there is no guest; 126, 127 as a shell. It never runs anything on the host.

Imports os, sys, signal, select, fcntl and nothing that needs more: every task of a job pays for its start. What is not
needed to start ssh is imported while ssh connects.
"""

import os
import select
import sys

from vmbatch import joblink
from vmbatch.channel import Channel, Command, LostError, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmbatch.turns import Turn

LOST, INCOMPLETE, NO_GUEST = 120, 121, 125

_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGCONT", "SIGWINCH")


def main(argv: list[str] | None = None, run_root: str = "/run/vmbatch", leave: bool = False) -> int:
    """Run the job's shell; `argv` as the scheduler gives it. Returns the exit code, or ends the process with it at once."""
    code = _main(argv, run_root)
    if leave:
        os._exit(code)
    return code


def _main(argv: list[str] | None, run_root: str) -> int:
    try:
        words = [os.fsencode(word) for word in (sys.argv if argv is None else argv)[1:]]
        folder = find_guest(dict(os.environ), run_root)
        facts = read_facts(folder)
        if words[:2] == [b"vmbatch", b"logs"]:
            return show_log(facts, b"--console" in words)
        refused = why_not(folder, facts)
        if refused:
            complain(refused)
            return NO_GUEST
        return _Shell(folder, facts).run(words)
    except KeyboardInterrupt:
        return 130
    except LostError as lost:
        complain(str(lost))
        return LOST


def complain(text: str) -> None:
    os.write(2, f"vmbatch: {text}\n".encode(errors="surrogateescape"))


def find_guest(environment: dict[str, str], run_root: str) -> str:
    """Return the folder of this job's guest; "" where the environment names no job."""
    if environment.get("VMBATCH_GUEST"):
        return environment["VMBATCH_GUEST"]
    name = joblink.of_environment(environment)
    return f"{run_root}/by-job/{name}" if name else ""


def read_facts(folder: str) -> dict[str, str]:
    """Read the guest's state file; see rundir.write_state."""
    facts: dict[str, str] = {}
    try:
        with open(f"{folder}/state", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                word, _, value = line.rstrip("\n").partition(" ")
                facts[word] = value.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
    except OSError:
        pass
    return facts


def why_not(folder: str, facts: dict[str, str]) -> str:
    """Return why there is no guest to run in, "" where there is one."""
    state = facts.get("state", "")
    if not folder:
        return "this is no batch job that vmbatch knows, so there is no guest; run: vmbatch run --image IMAGE -- COMMAND"
    if not state:
        return "there is no guest for this job on this node; was it submitted with --vm=IMAGE?"
    if state == "ready":
        return ""
    if state == "refused":
        console = facts.get("console", "")
        tail = f"\n--- the end of the guest's console ---\n{console}" if console else ""
        return facts.get("message", "no reason given") + tail
    return f"the guest of this job is not ready, but: {state}"


def show_log(facts: dict[str, str], console: bool) -> int:
    """Print the job's log or its guest's console: the one thing that is read on the host, for `vmbatch logs`."""
    try:
        with open(f"{facts['log']}/{'console' if console else 'vmbatch'}.log", "rb") as file:
            while part := file.read(65536):
                os.write(1, bytes(c if c in b"\t\n" or 32 <= c < 127 else 63 for c in part))
    except (KeyError, OSError) as error:
        complain(f"there is no log of this job that you may read: {error}")
        return NO_GUEST
    return 0


class _Shell:
    """One call of the job's shell."""

    def __init__(self, folder: str, facts: dict[str, str]) -> None:
        self.folder = os.path.realpath(folder)
        self.facts = facts
        self.terminal = os.isatty(0) and os.isatty(1)
        self.qemu = _watch(int(facts.get("pid", "0")), facts.get("start", ""))
        self.signals, self._wake = os.pipe()

    def run(self, words: list[bytes]) -> int:
        self.channel = Channel(f"{self.folder}/ssh_config", (), self.signals, self.qemu)
        self.channel.on_signal = self._on_signal
        from vmbatch import callforms
        from vmbatch.turns import Turn

        _catch_signals(self._wake)
        turn = Turn(self.folder)
        try:
            command, carried = callforms.command(words, os.fsencode(self.facts.get("workdir", "/")), self.terminal)
            if self.terminal:
                command.terminal = _terminal_size()
            staged = self._stage_in(turn, carried)
            if staged:
                return staged
            kind, code = self._in_terminal(command)
            status = code if kind == 0 else 128 + code
            return self._collect(turn, status)
        except LostError as lost:
            raise LostError(self._what_happened(str(lost))) from None
        finally:
            turn.end()
            self.channel.close()

    # --- files ---

    def _stage_in(self, turn: "Turn", carried: bytes) -> int:
        """Bring the input files in, once a job. Returns an exit code where that fails."""
        first = turn.first()
        if not first and not carried:
            return 0
        from vmbatch import output

        if first:  # the others go on once the guest has marked the start: what they write is newer
            self.channel.on_marked = turn.staged
        return output.bring_in(self.channel, self.facts, first, carried)

    def _collect(self, turn: "Turn", status: int) -> int:
        """Fetch what the job changed, when no other shell of this job is left to do so."""
        if not turn.last():
            return status
        from vmbatch import output

        if output.collect(self.channel, self.facts):
            turn.collected()
            return status
        return status or INCOMPLETE

    # --- terminal, signals, the end ---

    def _in_terminal(self, command: Command) -> tuple[int, int]:
        if not self.terminal:
            return self.channel.run(command, 0, 1, 2)
        import termios
        import tty

        before = termios.tcgetattr(0)
        try:
            tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
            return self.channel.run(command, 0, 1, 2)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def _on_signal(self, number: int) -> None:
        import signal

        if number == signal.SIGWINCH:
            self.channel.send(b"W", size(*_terminal_size()))
            return
        self.channel.send(b"K", bytes([number]))
        if number == signal.SIGTSTP:
            self.channel.push()
            os.kill(os.getpid(), signal.SIGSTOP)

    def _what_happened(self, said: str) -> str:
        """Say why the connection ended: the guest's end shows on its console."""
        if self.qemu >= 0 and not self.channel.guest_ended:
            self.channel.guest_ended = bool(select.select([self.qemu], [], [], 10)[0])
        tail = _tail(self.facts.get("console", ""))
        lost = "files that were not collected before are lost"
        if not self.channel.guest_ended:
            return f"the connection to the guest broke{': ' + said if said else ''}; {lost}"
        for mark, sentence in (
            ("reboot: Restarting system", "the guest rebooted, which ends the job"),
            ("reboot: machine restart", "the guest rebooted, which ends the job"),
            ("reboot: Power down", "the guest was powered off from inside, which ends the job"),
            ("reboot: System halted", "the guest was halted from inside, which ends the job"),
            ("Kernel panic", "the guest's kernel panicked"),
        ):
            if mark in tail:
                return f"{sentence}; {lost}\n--- the end of the guest's console ---\n{tail[-1200:]}"
        return (
            f"the guest was lost: its QEMU process ended without a shutdown (killed, or crashed); {lost}"
            f"\n--- the end of the guest's console ---\n{tail[-1200:]}"
        )


def _watch(pid: int, start: str) -> int:
    """Return a pidfd of the guest's QEMU, -1 where it cannot be watched."""
    try:
        descriptor = os.pidfd_open(pid) if pid else -1
        if descriptor >= 0:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[19].decode() == start:
                    return descriptor
            os.close(descriptor)
    except ProcessLookupError:
        raise LostError("the guest of this job has ended already") from None
    except OSError:
        return -1
    raise LostError("the guest of this job has ended already")


def _catch_signals(wake: int) -> None:
    import signal

    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for name in _PASSED_ON:
        signal.signal(getattr(signal, name), lambda number, frame: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(0)
        return size.lines, size.columns
    except OSError:
        return 24, 80


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4000))
            return file.read(4000).decode("ascii", "replace").replace("\r", "")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
