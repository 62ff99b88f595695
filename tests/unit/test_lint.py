"""Linters are tests: one command, one meaning of green."""

import subprocess
import sys
from pathlib import Path

import pytest
from things import ROOT

from vmbatch import manual

pytestmark = pytest.mark.programs
BIN = Path(sys.executable).parent


def clean(*argv: str | Path, **options: str) -> None:
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, **options
    )
    assert (done.returncode, done.stdout + done.stderr if done.returncode else "") == (0, "")


def test_ruff_finds_nothing() -> None:
    clean(BIN / "ruff", "check", "-q", "--no-cache", ".")


def test_the_format_is_ruffs() -> None:
    clean(BIN / "ruff", "format", "-q", "--check", "--no-cache", ".")


def test_mypy_strict_finds_nothing(tmp_path: Path) -> None:
    clean(BIN / "mypy", "--no-error-summary", "--cache-dir", tmp_path, "vmbatch")


def test_shellcheck_finds_nothing() -> None:
    scripts = ["packaging/setup.sh", ".ci/run", "vmbatch/guest/init.sh", *map(str, (ROOT / "hooks/slurm").glob("*log"))]
    clean("shellcheck", "-x", "-e", "SC1091", *scripts)
    clean("shellcheck", "-s", "sh", "vmbatch/guest/tiny/rc", "vmbatch/guest/tiny/initramfs")


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_the_guests_script_parses_in_every_shell(shell: str) -> None:
    clean(*(["busybox", "sh"] if shell == "busybox" else [shell]), "-n", "vmbatch/guest/init.sh")


def test_the_c_code_compiles_without_a_warning(tmp_path: Path) -> None:
    flags = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Wshadow", "-Werror")
    for compiler in ("gcc", "musl-gcc"):
        clean(compiler, *flags, "-static", "vmbatch/guest/runjob.c", "vmbatch/guest/collect.c", "-o", tmp_path / "runjob")
    clean("gcc", *flags, "-shared", "-fPIC", "packaging/spank/vmbatch.c", "-o", tmp_path / "vmbatch.so")


@pytest.mark.parametrize("name", manual.pages())
def test_man_pages_have_no_warnings(name: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text(manual.pages()[name])
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completion_completes(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(manual.bash_completion())
    ask = f"source {script}; COMP_WORDS=(vmbatch image bu); COMP_CWORD=2; _vmbatch; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["build"]
    ask = f"source {script}; COMP_WORDS=(vmbatch do); COMP_CWORD=1; _vmbatch; echo ${{COMPREPLY[@]}}"
    assert subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False).stdout.split() == ["doctor"]
