"""Every way in which a scheduler calls the job's shell."""

import os
from pathlib import Path

import pytest

from vmbatch import callforms

WORK = b"/no/such/work"


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "spool" / "job17" / "slurm_script"
    script.parent.mkdir(parents=True)
    script.write_bytes(b"#!/bin/bash -e\necho hello\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return script


def test_a_spooled_script_is_carried_with_its_arguments(spool: Path) -> None:
    command, below = callforms.command([os.fsencode(spool), b"a b", b"c"], WORK, False)
    assert command.argv == [os.fsencode(spool), b"a b", b"c"]
    assert command.script == (0, os.fsencode(spool), b"#!/bin/bash -e\necho hello\n")
    assert below == b""


def test_the_one_argument_of_a_first_line_is_the_interpreter(spool: Path) -> None:
    spool.write_bytes(b"#!/usr/bin/vmbatch-remoteshell /bin/bash -e\necho hello\n")
    command, _ = callforms.command([b"/bin/bash -e", os.fsencode(spool), b"x"], WORK, False)
    assert command.argv == [b"/bin/bash", b"-e", os.fsencode(spool), b"x"]
    assert command.script is not None and command.script[0] == 2


def test_a_script_whose_first_line_is_ours_alone_runs_under_sh(spool: Path) -> None:
    spool.write_bytes(b"#!/opt/site/bin/vmbatch-remoteshell\necho hello\n")
    command, _ = callforms.command([os.fsencode(spool), b"x"], WORK, False)
    assert command.argv == [b"/bin/sh", os.fsencode(spool), b"x"]
    assert command.script is not None and command.script[0] == 1


def test_a_command_is_found_in_the_guest(spool: Path) -> None:
    for words in ([b"hostname"], [b"/bin/ls", b"-l"], [b"./nosuch"], [b"/no/such/file"]):
        command, below = callforms.command(words, WORK, False)
        assert (command.argv, command.script, below) == (words, None, b"")


def test_a_file_below_the_working_directory_is_there_already(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "bin").mkdir()
    (tmp_path / "work" / "bin" / "go").write_text("#!/bin/sh\n")
    work = os.fsencode(tmp_path / "work")
    for name in (b"bin/go", b"./bin/go", work + b"/bin/go"):
        command, below = callforms.command([name], work, False)
        assert (command.argv, command.script, below) == ([name], None, b"bin/go")


def test_an_own_file_elsewhere_is_carried(spool: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sh"
    own.write_text("echo own\n")
    command, _ = callforms.command([os.fsencode(own)], os.fsencode(tmp_path / "work"), False)
    assert command.script == (0, os.fsencode(own), b"echo own\n")


def test_c_and_s_and_nothing(spool: Path) -> None:
    assert callforms.command([b"-c", b"echo x"], WORK, False)[0].argv == [b"/bin/sh", b"-c", b"echo x"]
    assert callforms.command([b"-s", b"a"], WORK, False)[0].argv == [b"/bin/sh", b"-s", b"a"]
    assert callforms.command([], WORK, False)[0].argv == [b"/bin/sh", b"-s"]


def test_nothing_on_a_terminal_is_a_login_shell(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    argv = callforms.command([], WORK, True)[0].argv
    assert argv[:2] == [b"/bin/sh", b"-c"] and b'exec "$SHELL" -l' in argv[2]


def feed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    kept = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    monkeypatch.setenv("PBS_JOBID", "7.server")
    monkeypatch.setattr(callforms, "_restore_", lambda: os.dup2(kept, 0), raising=False)


def test_torque_feeds_one_line_with_script_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "7.server.SC"
    script.write_text("#!/bin/sh\necho torque\n")
    feed(monkeypatch, b"%s a\\ b c\n" % os.fsencode(script))
    try:
        command, _ = callforms.command([], WORK, False)
    finally:
        callforms._restore_()  # type: ignore[attr-defined]
    assert command.argv == [os.fsencode(script), b"a b", b"c"]
    assert command.script == (0, os.fsencode(script), b"#!/bin/sh\necho torque\n")


def test_a_whole_script_on_standard_input_of_a_pbs_job(monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"#!/bin/sh\necho whole\n")
    try:
        command, _ = callforms.command([], WORK, False)
    finally:
        callforms._restore_()  # type: ignore[attr-defined]
    assert (command.argv, command.script) == ([b"script"], (0, b"script", b"#!/bin/sh\necho whole\n"))


def test_variables_of_the_host_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "BASH_ENV", "BASH_FUNC_x%%", "SSH_AUTH_SOCK", "SLURM_JWT", "PYTHONPATH", "TMPDIR"):
        monkeypatch.setenv(name, "bad")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    names = {one.partition(b"=")[0] for one in callforms.environment()}
    assert {b"SLURM_JOB_ID", b"OMP_NUM_THREADS", b"PATH"} <= names
    assert not [one for one in callforms.environment() if one.endswith(b"=bad")]
