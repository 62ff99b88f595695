"""vmbatch image build: a failed, interrupted or killed build leaves nothing; an image in use is not replaced."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import daemons
import pytest
from devsite import VMBATCH, Site


@pytest.fixture
def own(site: Site) -> Iterator[Site]:
    """A site with image folders of its own."""
    site.configure(paths={"images": site.folder / "images", "catalogue": site.folder / "images.d"})
    yield site
    site.configure()


def left(site: Site) -> list[str]:
    return sorted(path.name for name in ("images", "images.d") for path in (site.folder / name).glob("*"))


def begin(site: Site) -> "subprocess.Popen[str]":
    """Start a build; it is under way when this returns."""
    argv = [str(VMBATCH), "--config", str(site.config), "image", "build", "tiny"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    daemons.wait_for(lambda: list(site.folder.glob("images/.build-*/kernel/*")), 120, "the build's first files")
    return child


def test_a_build_that_fails_leaves_nothing_and_says_why(own: Site) -> None:
    done = own.call("image", "build", "tiny", "--package", "no-such-package-anywhere")
    assert done.returncode in (1, 3)
    assert "no-such-package-anywhere" in done.stderr and "Traceback" not in done.stderr
    assert left(own) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(own: Site, number: int) -> None:
    child = begin(own)
    os.killpg(child.pid, number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode != 0 and "Traceback" not in out
    assert left(own) == []


def test_a_killed_build_is_swept_away_by_the_next_one(own: Site) -> None:
    child = begin(own)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert any(Path(name).name.startswith(".build-") for name in os.listdir(own.folder / "images"))
    assert own.call("image", "build", "tiny").returncode == 0
    assert left(own) == ["tiny.initrd", "tiny.qcow2", "tiny.toml", "tiny.vmlinuz"]
    assert not [name for name in os.listdir(own.folder / "images") if name.startswith(".")]
    listed = own.call("image", "list").stdout
    assert "tiny" in listed


def test_an_image_in_use_is_not_replaced(own: Site) -> None:
    if not (own.folder / "images" / "tiny.qcow2").exists():
        assert own.call("image", "build", "tiny").returncode == 0
    argv = [str(VMBATCH), "--config", str(own.config), "run", "--image", "tiny:in=none", "--", "sh", "-c", "echo on; cat"]
    job = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/tmp"
    )
    assert job.stdout is not None and job.stdout.readline() == "on\n"
    before = (own.folder / "images" / "tiny.qcow2").stat().st_ino
    done = own.call("image", "build", "tiny")
    assert done.returncode == 3 and "is in use by 1 guest" in done.stderr
    assert (own.folder / "images" / "tiny.qcow2").stat().st_ino == before
    job.communicate("", timeout=60)
    assert job.returncode == 0
