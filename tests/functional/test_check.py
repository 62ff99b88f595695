"""vmbatch check: the plan and every reason against it, on a machine without libvirt."""

import pwd
from collections.abc import Iterator

import pytest
from devsite import Site


@pytest.fixture
def login(site: Site) -> Iterator[Site]:
    """A login node: no libvirt answers."""
    site.configure(libvirt={"uri": "qemu+unix:///system?socket=/nonexistent"})
    yield site
    site.configure()


def test_the_plan_is_shown(login: Site, alice: pwd.struct_passwd) -> None:
    done = login.call(
        "check", "tiny:memory=300M", "--grant-memory", "1G", "--grant-cpus", "3", user=alice.pw_uid, cwd="/tmp"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = dict(text.split(maxsplit=1) for text in done.stdout.splitlines() if len(text.split()) > 1)
    assert (shown["memory"], shown["cpus"], shown["image"]) == ("300 MiB", "3", "tiny")
    assert f"({alice.pw_uid})" in shown["user"]


def test_the_domain_is_shown(login: Site) -> None:
    done = login.call("check", "tiny", "--xml", cwd="/tmp")
    assert done.returncode == 0
    assert done.stdout.startswith("<domain type=") and "<vb" not in done.stdout


def test_every_reason_is_given_at_once(login: Site) -> None:
    done = login.call(
        "check", "tiny:template=gpu:memory=9G:cpus=99", "--grant-memory", "1G", "--grant-cpus", "2", cwd="/tmp"
    )
    assert done.returncode == 1
    refused = [text for text in done.stdout.splitlines() if text.startswith("refused: ")]
    assert len(refused) >= 2, done.stdout
    assert "gpu" in done.stdout and "9G" in done.stdout.replace("9216M", "9G")


@pytest.mark.parametrize("text", ["", "tniy", "tiny:x=1", "tiny:in=../x", "a" * 2000])
def test_a_mistake_is_a_refusal_and_no_traceback(login: Site, text: str) -> None:
    done = login.call("check", text, cwd="/tmp")
    assert done.returncode == 1
    assert done.stdout.startswith("refused: ") and done.stderr == ""
