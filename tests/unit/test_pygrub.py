"""The corrected boot loader, with Debian's pygrub on disks that real tools make; older pygrubs are small programs."""

import ast
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmbatch
from vmbatch import pygrub
from vmbatch.errors import SiteError

pytestmark = pytest.mark.programs

MIB = 1 << 20
KERNEL, INITRD = b"a kernel" * 20000, b"an initrd" * 5000
GRUB = 'set timeout=0\nmenuentry "one" {\n linux /vmlinuz ro quiet\n initrd /initrd\n}\n'
MENU = "default 0\ntimeout 0\ntitle one\n root (hd0)\n kernel /vmlinuz ro quiet\n initrd /initrd\n"
SYSLINUX = "default one\ntimeout 1\nlabel one\n kernel /vmlinuz\n append ro quiet initrd=/initrd\n"
ENTRY = f"""\
import sys
sys.path.insert(0, {str(Path(vmbatch.__file__).parent.parent)!r})
from vmbatch.pygrub import main
sys.exit(main(sys.argv[1:]))
"""
SPARE = ("fat16", "fat32", "iso")  # where pygrub needs our help
DISKS = (*SPARE, "fat12", "fat16-untouched", "mbr-fat", "mbr-ext4", "gpt-ext4", "ext4", "plain-iso")


def tool(*words: str | Path, stdin: str = "") -> str:
    done = subprocess.run([str(word) for word in words], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def boot(*words: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-I", "-c", ENTRY, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def program(path: Path, text: str) -> Path:
    """Another pygrub: an executable that knows its result's file as $output and notes its arguments."""
    find = "for word; do case $word in --output=*) output=${word#--output=};; esac; done"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {path}.argv\n{find}\n{text}\n')
    path.chmod(0o755)
    return path


def argv(pygrub: Path) -> list[str]:
    words = Path(f"{pygrub}.argv").read_text().splitlines()
    return [word for word in words if not word.startswith("--output=/proc/")]


def tree(folder: Path, config: str, text: str) -> Path:
    (folder / config).parent.mkdir(parents=True)
    (folder / config).write_text(text)
    (folder / "vmlinuz").write_bytes(KERNEL)
    (folder / "initrd").write_bytes(INITRD)
    return folder


def blank(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    return path


def fat(path: Path, files: Path, bits: int, size_mib: int, *, begin_mib: int = 0, code: bool = True) -> Path:
    """A FAT with files. syslinux fills its first sector with code, as on many bootable sticks and small images."""
    tool("mkfs.vfat", "-F", str(bits), blank(path, size_mib))
    tool("mcopy", "-s", "-i", path, *files.iterdir(), "::")
    if code:
        tool("syslinux", "--install", path)
    if begin_mib:
        path.write_bytes(bytes(begin_mib * MIB) + path.read_bytes())
        tool("sfdisk", "-q", path, stdin="2048,,c,*\n")
    return path


def ext4(path: Path, files: Path, label: str = "") -> Path:
    tool("sfdisk", "-q", blank(path, 24), stdin=f"label: {label}\n2048,8192,L\n10240,20480,L\n") if label else blank(
        path, 24
    )
    begin = 5 * MIB if label else 0
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-d", files, "-E", f"offset={begin}", path, "10M")
    return path


def iso(path: Path, files: Path, *options: str) -> Path:
    tool("xorriso", "-as", "mkisofs", "-quiet", "-R", *options, "-o", path, files)
    return path


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of disks, each with a kernel, an initrd and a configuration that pygrub reads."""
    made = tmp_path_factory.mktemp("disks")
    grub = tree(made / "with-grub", "boot/grub/grub.cfg", GRUB)
    menu = tree(made / "with-menu", "boot/grub/menu.lst", MENU)
    extlinux = tree(made / "with-extlinux", "extlinux.conf", SYSLINUX)
    isolinux = tree(made / "with-isolinux", "boot/isolinux/isolinux.cfg", SYSLINUX)
    fat(made / "fat12", extlinux, 12, 4)
    fat(made / "fat16", menu, 16, 32)
    fat(made / "fat32", extlinux, 32, 64)
    fat(made / "fat16-untouched", grub, 16, 32, code=False)
    fat(made / "mbr-fat", menu, 16, 32, begin_mib=1)
    ext4(made / "mbr-ext4", grub, "dos")
    ext4(made / "gpt-ext4", menu, "gpt")
    ext4(made / "ext4", grub)
    iso(made / "iso", isolinux, "--protective-msdos-label")
    iso(made / "plain-iso", isolinux)
    return made


def fields(result: str, form: str) -> dict[str, str]:
    if form == "sxp":
        found = re.fullmatch(r"linux \(kernel ('.*?')\)\(ramdisk ('.*?')\)\(args ('.*?')\)", result)
        assert found, result
        return dict(zip(("kernel", "ramdisk", "args"), map(ast.literal_eval, found.groups()), strict=True))
    separator = {"simple": "\n", "simple0": "\0"}[form]
    assert result.endswith(2 * separator)
    return dict(line.split(" ", 1) for line in result.removesuffix(2 * separator).split(separator))  # type: ignore[misc]


@pytest.mark.parametrize("form", ["sxp", "simple", "simple0"])
@pytest.mark.parametrize("name", DISKS)
def test_kernel_initrd_and_every_parameter_once(name: str, form: str, disks: Path, tmp_path: Path) -> None:
    done = boot(f"--output-directory={tmp_path}", f"--output-format={form}", "--args=console=hvc0 x=1", disks / name)
    assert done.returncode == 0, done.stderr
    found = fields(done.stdout, form)
    assert Path(found["kernel"]).read_bytes() == KERNEL
    assert Path(found["ramdisk"]).read_bytes() == INITRD
    assert found["args"].split() == ["ro", "quiet", "console=hvc0", "x=1"]
    assert {str(path) for path in tmp_path.iterdir()} == {found["kernel"], found["ramdisk"]}


@pytest.mark.parametrize("name", SPARE)
def test_without_us_pygrub_takes_boot_code_for_a_table_and_finds_nothing(name: str, disks: Path, tmp_path: Path) -> None:
    words = [str(pygrub.find()), "-q", f"--output-directory={tmp_path}", str(disks / name)]
    alone = subprocess.run(words, capture_output=True, text=True, check=False)
    assert alone.returncode != 0 and "Unable to find partition containing kernel" in alone.stderr
    assert boot(*words[2:]).returncode == 0


@pytest.mark.parametrize("name", DISKS)
def test_only_a_disk_without_a_table_of_its_own_is_read_from_its_beginning(name: str, disks: Path) -> None:
    tables = {"mbr-fat", "mbr-ext4", "gpt-ext4"}
    assert pygrub.offset(disks / name) == ([] if name in tables else ["--offset=0"])


def test_a_broken_table_is_left_to_pygrub(disks: Path, tmp_path: Path) -> None:
    raw = bytearray((disks / "gpt-ext4").read_bytes())
    raw[520:524] = raw[-504:-500] = b"xxxx"
    disk = tmp_path / "disk"
    disk.write_bytes(raw)
    assert pygrub.offset(disk) == []
    assert boot(f"--output-directory={tmp_path}", disk).returncode == 0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("sxp", "linux (kernel /k)(ramdisk /r)(args 'ro quiet')"),
        ("sxp", "linux (kernel /k)(ramdisk /r)"),
        ("simple", "kernel /k\\nramdisk /r\\nargs ro quiet\\n\\n"),
        ("simple", "kernel /k\\nramdisk /r\\n\\n"),
        ("simple0", "kernel /k\\000ramdisk /r\\000args ro quiet\\000\\000"),
        ("simple0", "kernel /k\\000ramdisk /r\\000\\000"),
    ],
)
def test_a_pygrub_that_forgets_the_parameters_is_corrected(form: str, words: str, disks: Path, tmp_path: Path) -> None:
    old = program(tmp_path / "pygrub", f'printf "{words}" > "$output"')
    done = boot(f"--pygrub={old}", f"--output-format={form}", "--args=x=1 quiet", disks / "mbr-ext4")
    assert (done.returncode, done.stderr) == (0, "")
    expected = "ro quiet x=1" if "quiet" in words else "x=1 quiet"
    found = fields(done.stdout.replace("/k", "'/k'").replace("/r)", "'/r')") if form == "sxp" else done.stdout, form)
    assert found["args"] == expected
    assert (found["kernel"], found["ramdisk"]) == ("/k", "/r")


SXP = "linux (kernel '/k')(ramdisk '/r')"


@pytest.mark.parametrize(
    ("before", "args", "after"),
    [
        (f"{SXP}(args 'a b')", "a b", f"{SXP}(args 'a b')"),
        (f"{SXP}(args 'a b')", "b a", f"{SXP}(args 'a b')"),
        (f"{SXP}(args 'a b')", "c  c\tb", f"{SXP}(args 'a b c')"),
        (f"{SXP}(args 'ab')", "a", f"{SXP}(args 'ab a')"),
        (f"{SXP}(args 'a')", "  ", f"{SXP}(args 'a')"),
        (SXP, "a=')(kernel x", f'{SXP}(args "a=\')(kernel x")'),
        (f'{SXP}(args "it\'s")', 'd="x y"', f"{SXP}(args 'it\\'s d=\"x y\"')"),
        (f"{SXP}(args 'd=\"x y\"')", 'y d="x y"', f"{SXP}(args 'd=\"x y\" y')"),
        ("linux (kernel /k)(args 'a')\n", "a", "linux (kernel /k)(args 'a')\n"),
        ("linux (kernel None)", "a", "linux (kernel None)(args 'a')"),
        ("linux (kernel '(args x)')", "x", "linux (kernel '(args x)')(args 'x')"),
    ],
)
def test_parameters_in_sxp(before: str, args: str, after: str) -> None:
    assert pygrub.with_args(before, args, "sxp") == after


@pytest.mark.parametrize("form", ["sxp", "simple", "simple0"])
@pytest.mark.parametrize("result", ["Traceback", "args a\n\n", "kernel", "linux", "linux (kernel '/k'", "kernel /k", "\n\n"])
def test_what_is_no_result_is_refused(result: str, form: str) -> None:
    with pytest.raises(SiteError, match="not understood"):
        pygrub.with_args(result, "a", form)


@pytest.mark.parametrize(("line", "args"), [('a=" b', "c"), ("a", 'c="'), ('a=" x', 'c="')])
def test_a_quote_that_is_not_closed_would_swallow_parameters(line: str, args: str) -> None:
    with pytest.raises(SiteError, match="not closed"):
        pygrub.with_args(f"{SXP}(args {line!r})", args, "sxp")


def test_a_line_break_is_never_written_into_a_format_of_lines() -> None:
    assert pygrub.with_args("kernel /k\0\0", 'a="\n"', "simple0") == 'kernel /k\0args a="\n"\0\0'
    with pytest.raises(SiteError, match="line break"):
        pygrub.with_args("kernel /k\n\n", 'a="\nkernel /etc/shadow"', "simple")


TEXT = st.lists(st.sampled_from([*"ab=\\'() \t%é\x07\udcff", '"a b"', '""']), max_size=12).map("".join)


@given(TEXT, TEXT, st.sampled_from(["sxp", "simple", "simple0"]))
def test_parameters_are_added_once_and_nothing_else_changes(line: str, args: str, form: str) -> None:
    separator = {"simple": "\n", "simple0": "\0"}.get(form)
    line = line.strip()
    if separator is None:
        before = f"{SXP}(args {line!r})" if line else SXP
    else:
        before = separator.join(["kernel '/k'", "ramdisk '/r'", *([f"args {line}"] if line else []), "", ""])
    after = pygrub.with_args(before, args, form)
    assert pygrub.with_args(after, args, form) == after
    if separator is None:
        assert after.startswith(SXP)
        rest = after.removeprefix(SXP)
        whole = ast.literal_eval(rest.removeprefix("(args ").removesuffix(")")) if rest else ""
    else:
        lines = after.split(separator)
        assert lines[:2] == ["kernel '/k'", "ramdisk '/r'"] and lines[-2:] == ["", ""] and len(lines) <= 5
        whole = lines[2].removeprefix("args ")
    assert whole.startswith(line)
    if '"' not in line + args:
        assert sorted(whole.removeprefix(line).split()) == sorted(set(args.split()) - set(line.split()))


def test_pygrub_is_called_with_what_we_were_and_never_for_its_menu(disks: Path, tmp_path: Path) -> None:
    other = program(tmp_path / "pygrub", "")
    (tmp_path / "disk").symlink_to(disks / "mbr-ext4")
    words = ["--args", "a b", "--kernel=/k", "--ramdisk=/r", "--entry", "2", "--output-dir=out", "-l", "--runas=7", "disk"]
    assert boot("--pygrub=pygrub", *words, cwd=tmp_path).returncode == 0
    kept = ["--args=a b", "--kernel=/k", "--ramdisk=/r", "--entry=2", f"--output-directory={tmp_path}/out"]
    assert argv(other) == ["-q", *kept, "-l", "--runas=7", f"{tmp_path}/disk"]
    (tmp_path / "disk").unlink()
    (tmp_path / "disk").symlink_to(disks / "fat16")
    for words, expected in ((["disk"], "--offset=0"), (["disk", "--offset=512"], "--offset=512")):
        assert boot("--pygrub=pygrub", *words, cwd=tmp_path).returncode == 0
        assert argv(other) == ["-q", expected, f"{tmp_path}/disk"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no disk is named"),
        (["-i", "{disk}"], "there is no menu"),
        (["-q", "--interactive", "{disk}"], "there is no menu"),
        (["--append=x", "{disk}"], "--append"),
        (["--output-format=xml", "{disk}"], "no output format 'xml'"),
        (["/nowhere/disk"], "cannot read the disk /nowhere/disk: No such file"),
        (["/dev"], "/dev is neither a file nor a block device"),
        (["{fifo}"], "fifo is neither a file nor a block device"),
        (["--output=/nowhere/out", "{disk}"], "cannot write /nowhere/out: No such file"),
        (["--pygrub=/nowhere/pygrub", "{disk}"], "/nowhere/pygrub is no program that can be run"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words: list[str], said: str, disks: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    places = {"disk": disks / "fat16", "fifo": tmp_path / "fifo"}
    done = boot(*(word.format(**places) for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"pygrub-vmbatch: .*{re.escape(said)}.*\n", done.stderr), done.stderr


def test_help_is_a_line() -> None:
    assert boot("--help").stdout == boot("-h").stdout == "usage: pygrub-vmbatch [--pygrub=FILE] [pygrub's options] DISK\n"


def test_pygrubs_exit_code_is_ours_and_nothing_of_the_disk_steers_a_terminal(disks: Path, tmp_path: Path) -> None:
    bad = program(
        tmp_path / "pygrub", "printf 'title \\033]0;evil\\007\\n'; printf 'no \\033[2J\\n' >&2; echo x > $output; exit 7"
    )
    done = boot(f"--pygrub={bad}", disks / "fat16")
    assert (done.returncode, done.stdout) == (7, "title ?]0;evil?\n")
    assert done.stderr == f"no ?[2J\npygrub-vmbatch: {bad} failed with 7 on {disks / 'fat16'}\n"


def test_a_disk_without_a_kernel_fails_as_pygrub_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("")
    done = boot(f"--output-directory={tmp_path}", f"--output={out}", blank(tmp_path / "disk", 4))
    assert done.returncode == 1 and "Unable to find partition containing kernel" in done.stderr
    assert out.read_text() == ""


def test_the_result_goes_to_a_file_that_exists(disks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("older and longer" * 100)
    words = [f"--output-directory={tmp_path}", "--output-format=simple", "--args=x", disks / "fat32"]
    done = boot("--output=out", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert fields(out.read_text(), "simple")["args"] == "ro quiet x"
    assert fields(boot("--output=-", *words).stdout, "simple")["args"] == "ro quiet x"


def fifo(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def hear(descriptor: int) -> bytes:
    """The next words of a pipe; b"" once nobody holds its other end."""
    assert select.select([descriptor], [], [], 30)[0]
    return os.read(descriptor, 4096)


@pytest.mark.parametrize("name", ["fat16", "empty"])
def test_who_reads_a_fifo_sees_its_end(name: str, disks: Path, tmp_path: Path) -> None:
    blank(tmp_path / "empty", 4)
    reader = fifo(tmp_path / "fifo")
    argv = [f"--output-directory={tmp_path}", f"--output={tmp_path}/fifo", tmp_path / name]
    if name == "fat16":
        argv[-1] = disks / name
        assert boot(*argv).returncode == 0
        assert hear(reader).startswith(b"linux (kernel '")
    else:
        assert boot(*argv).returncode == 1
    assert hear(reader) == b""
    os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_when_libxl_gives_up_pygrub_ends_too(number: signal.Signals, disks: Path, tmp_path: Path) -> None:
    alive = fifo(tmp_path / "alive")
    slow = program(tmp_path / "pygrub", f"exec > {tmp_path}/alive; echo here; exec sleep 600")
    with subprocess.Popen([sys.executable, "-I", "-c", ENTRY, f"--pygrub={slow}", str(disks / "fat16")]) as process:
        assert hear(alive) == b"here\n"
        process.send_signal(number)
        assert hear(alive) == b""
        assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    os.close(alive)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_pygrub_may_give_up_root(disks: Path, tmp_path: Path) -> None:
    done = boot("--runas=65534", f"--output-directory={tmp_path}", "--output-format=simple", "--args=x", disks / "fat16")
    assert done.returncode == 0, done.stderr
    found = fields(done.stdout, "simple")
    assert found["args"] == "ro quiet x" and Path(found["kernel"]).read_bytes() == KERNEL


def test_the_newest_pygrub_is_found(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="not installed"):
        pygrub.find(tmp_path)
    for place in ("usr/bin", "usr/lib/xen-4.9/bin", "usr/lib/xen-4.17/bin", "usr/lib/xen-4.20/bin"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "pygrub").touch(0o755 if "4.20" not in place else 0o644)
    assert pygrub.find(tmp_path) == tmp_path / "usr/lib/xen-4.17/bin/pygrub"
