"""What a scheduler's call of the job's shell means: which command is to run in the guest, in which environment.

Forms: a script and its arguments (Slurm, Grid Engine), with one argument of a `#!` line before it; an arbitrary command
(srun); a line with script and arguments on standard input (Torque); `-s` or nothing with the script itself on standard
input; `-c COMMAND`; nothing on a terminal.
"""

import os

from vmbatch.channel import Command

# Variables that make sense on the host only, or would let the host's set-up break programs in the guest.
DENIED = (
    b"BASH_ENV", b"ENV", b"IFS", b"KRB5CCNAME", b"PROMPT_COMMAND", b"PS4", b"SLURM_JWT", b"TMPDIR", b"VMBATCH_GUEST",
    b"XDG_RUNTIME_DIR",
)  # fmt: skip
DENIED_PREFIXES = (b"BASH_FUNC_", b"GCONV_", b"LD_", b"PERL5", b"PYTHONHOME", b"PYTHONPATH", b"SSH_")
LARGEST_SCRIPT = 32 << 20
_SPOOLED = (b"/slurm_script", b".SC")  # where schedulers keep their copies of scripts
_SYSTEM = (b"/bin/", b"/lib", b"/opt/", b"/sbin/", b"/usr/")  # the guest has its own
_OURS = b"vmbatch-remoteshell"

Script = tuple[int, bytes, bytes]  # index of the argument that becomes its path in the guest, name, text


def command(words: list[bytes], workdir: bytes, terminal: bool) -> tuple[Command, bytes]:
    """Return the command, and a file below the working directory that must be in the guest for it (or b"")."""
    script: Script | None = None
    carried = b""
    if not words and terminal:
        words = [b"/bin/sh", b"-c", b'[ -x "$SHELL" ] || SHELL=/bin/sh; exec "$SHELL" -l']
    elif not words or words[0] == b"-s":
        words, script = _from_stdin(words)
    elif words[0] == b"-c":
        words = [b"/bin/sh", *words]
    else:
        words, script, carried = _file(words, workdir)
    result = Command(words, environment(), os.getcwdb(), _umask())
    result.script = script
    return result, carried


def environment() -> list[bytes]:
    """Return the job's environment for the guest, without what only makes sense on the host."""
    return [
        name + b"=" + value
        for name, value in os.environb.items()
        if name not in DENIED and not name.startswith(DENIED_PREFIXES)
    ]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _file(words: list[bytes], workdir: bytes) -> tuple[list[bytes], Script | None, bytes]:
    """A script or a command: a spooled or own file is carried along, others are found in the guest."""
    interpreter: list[bytes] = []
    if len(words) > 1 and shebang(words[1]) == [_OURS, words[0]]:
        interpreter, words = words[0].split(), words[1:]  # "#!/usr/bin/vmbatch-remoteshell /bin/bash -e"
    path = words[0]
    absolute = os.path.join(os.getcwdb(), path)
    if b"/" not in path or not os.path.isfile(absolute) or not os.access(absolute, os.R_OK):
        return words, None, b""
    if shebang(absolute) == [_OURS]:
        interpreter = [b"/bin/sh"]
    below = _below(absolute, workdir)
    own = os.stat(absolute).st_uid == os.getuid() and not absolute.startswith(_SYSTEM)
    if not interpreter and (below or not (own or absolute.endswith(_SPOOLED))):
        return words, None, below
    with open(absolute, "rb") as file:
        return [*interpreter, *words], (len(interpreter), path, file.read(LARGEST_SCRIPT)), b""


def _from_stdin(words: list[bytes]) -> tuple[list[bytes], Script | None]:
    """Torque feeds one line with the script's path and arguments; others feed the script itself."""
    if words or not os.environ.get("PBS_JOBID"):
        return [b"/bin/sh", *(words or [b"-s"])], None
    text = b""
    while len(text) < LARGEST_SCRIPT:
        part = os.read(0, 65536)
        if not part:
            break
        text += part
    import shlex

    line = text.rstrip(b"\n")
    named = shlex.split(os.fsdecode(line)) if b"\n" not in line else []
    if named and os.path.isfile(named[0]):
        with open(named[0], "rb") as file:
            script = file.read(LARGEST_SCRIPT)
        return [os.fsencode(word) for word in named], (0, os.fsencode(named[0]), script)
    return [b"script"], (0, b"script", text)


def shebang(path: bytes) -> list[bytes]:
    """Return [base name of the interpreter, its one argument if any] of a script; [] for anything else."""
    try:
        with open(path, "rb") as file:
            line = file.readline(4096)
    except OSError:
        return []
    if not line.startswith(b"#!"):
        return []
    first, _, rest = line[2:].strip().partition(b" ")
    return [os.path.basename(first), *([rest.strip()] if rest.strip() else [])]


def _below(path: bytes, folder: bytes) -> bytes:
    """Return path relative to folder, b"" where it is not below it."""
    real, base = os.path.realpath(path), os.path.realpath(folder)
    return real[len(base) + 1 :] if real.startswith(base.rstrip(b"/") + b"/") else b""
