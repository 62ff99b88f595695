"""Images from the net in real jobs: once for each job or once for all, checked, shared, copied, never written twice."""

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import fileserver
import pytest
from devsite import VMBATCH, Site
from seconddisk import READ, WRITE, machine, popen, run

pytestmark = pytest.mark.usefixtures("no_leaks")


def disk(text: str) -> bytes:
    """A disk image whose first line is the text."""
    return (text.encode() + b"\n").ljust(1 << 20, b"\0")


def objects(site: Site) -> list[str]:
    return sorted(os.listdir(site.folder / "store/objects")) if (site.folder / "store/objects").is_dir() else []


def test_a_shared_image_is_fetched_once_checked_and_never_written(site: Site, server: fileserver.Server) -> None:
    content = disk("shared")
    url = server.put("shared.raw", content)
    md5 = hashlib.md5(content).hexdigest()
    link = site.folder / "look/shared.raw"
    machine(
        site,
        "shared",
        f"<vbdisksource source='{url}' copy_method='shared'/><driver name='qemu' type='raw'/><source file='{link}'/>"
        f"<vbcheckhash hashfunction='/usr/bin/md5sum' hashvalue='{md5}'/>",
    )
    for _ in range(2):
        done = run(site, "shared", WRITE)
        assert done.stdout == "shared\nwritten\n", done.stderr
    assert server.gets == 1
    name = f"{hashlib.sha512(content).hexdigest()}.raw"
    assert name in objects(site)
    assert link.resolve() == site.folder / "store/objects" / name and link.read_bytes() == content


def test_a_downloaded_image_is_fetched_for_each_job_and_leaves_no_file(site: Site, server: fileserver.Server) -> None:
    url = server.put("download.raw", disk("download"))
    before, gets = objects(site), server.gets
    machine(site, "download", f"<vbdisksource source='{url}' copy_method='download' format='raw'/>")
    for _ in range(2):
        assert run(site, "download", WRITE).stdout == "download\nwritten\n"
    assert server.gets - gets == 2
    assert objects(site) == before
    assert list((site.folder / "scratch").iterdir()) == []


@pytest.mark.parametrize("fault", ["hash", "missing", "gone"])
def test_an_image_that_cannot_be_had_refuses_the_job_and_spares_the_node(
    site: Site, server: fileserver.Server, fault: str
) -> None:
    url = server.put("bad.raw", disk("bad"))
    source = {"missing": f"{server.url}/none.raw", "gone": "http://127.0.0.1:9/x.raw"}.get(fault, url)
    check = "<vbcheckhash hashfunction='sha1sum' hashvalue='da39a3ee5e6b4b0d3255bfef95601890afd80709'/>"
    before = objects(site)
    machine(site, "bad", f"<vbdisksource source='{source}' copy_method='shared' format='raw'/>{check}")
    done = run(site, "bad", "true")
    assert done.returncode == 125
    words = {"hash": "its sha1 is", "missing": "404", "gone": "127.0.0.1"}[fault]
    assert words in done.stderr and "Traceback" not in done.stderr
    assert objects(site) == before


def test_a_shared_image_without_copy_on_write_gives_each_job_a_sparse_copy(site: Site, server: fileserver.Server) -> None:
    url = server.put("copied.raw", disk("copied").ljust(64 << 20, b"\0"))
    source = f"<vbdisksource source='{url}' copy_method='shared' copy_on_write='no' format='raw'/>"
    machine(site, "copied", source)
    job = popen(site, "copied", f"{WRITE}; read x")
    assert job.stdout is not None and [job.stdout.readline(), job.stdout.readline()] == ["copied\n", "written\n"]
    copies = list((site.folder / "scratch").glob("*/disk1.raw"))
    assert len(copies) == 1 and copies[0].stat().st_size == 64 << 20
    assert copies[0].stat().st_blocks * 512 < 8 << 20
    assert run(site, "copied", READ).stdout == "copied\n"
    job.communicate("\n", timeout=60)


def test_a_readonly_image_is_shared_by_guests_that_cannot_write_to_it(site: Site, server: fileserver.Server) -> None:
    url = server.put("library.raw", disk("library"))
    machine(site, "library", f"<vbdisksource source='{url}' copy_method='shared' format='raw'/>", readonly=True)
    first = popen(site, "library", f"{READ}; read x")
    assert first.stdout is not None and first.stdout.readline() == "library\n"
    done = run(site, "library", f"{READ}; echo x > /dev/vdb || echo refused")
    assert done.stdout == "library\nrefused\n", done.stderr
    assert not list((site.folder / "scratch").glob("*/disk1*"))
    first.communicate("\n", timeout=60)
    assert first.returncode == 0


def test_a_disk_of_the_templates_own_has_one_writer_and_a_second_job_is_refused(site: Site) -> None:
    (site.folder / "plain.raw").write_bytes(disk("plain"))
    machine(site, "plain", f"<driver name='qemu' type='raw'/><source file='{site.folder}/plain.raw'/>")
    first = popen(site, "plain", f"{READ}; read x")
    assert first.stdout is not None and first.stdout.readline() == "plain\n"
    second = run(site, "plain", READ)
    assert second.returncode == 125 and "plain.raw is in use by local-" in second.stderr
    first.communicate("\n", timeout=60)
    assert run(site, "plain", READ).stdout == "plain\n"


def test_what_cannot_be_linked_stays_and_two_jobs_of_one_name_do_not_collide(site: Site, server: fileserver.Server) -> None:
    url = server.put("linked.raw", disk("linked"))
    link = site.folder / "look/mine.raw"
    link.parent.mkdir(exist_ok=True)
    link.write_text("a file of somebody else")
    source = f"<vbdisksource source='{url}' copy_method='download' format='raw'/><source file='{link}'/>"
    machine(site, "linked", source)
    assert run(site, "linked", READ).stdout == "linked\n"
    assert link.read_text() == "a file of somebody else"
    assert "is not ours and stays" in site.log()
    link.unlink()
    first = popen(site, "linked", f"{WRITE}; read x")
    assert first.stdout is not None and [first.stdout.readline(), first.stdout.readline()] == ["linked\n", "written\n"]
    assert link.resolve().parent.parent == site.folder / "scratch"
    assert run(site, "linked", READ).stdout == "linked\n"
    assert link.is_symlink() and link.exists()
    first.communicate("\n", timeout=60)
    assert not os.path.lexists(link)


def test_a_terminal_shows_a_bar_and_the_log_has_lines(site: Site, server: fileserver.Server) -> None:
    url = server.put("bar.raw", disk("bar").ljust(8 << 20, b"\0"))
    machine(site, "bar", f"<vbdisksource source='{url}?drip=0.02&amp;piece=262144' copy_method='download' format='raw'/>")
    command = f"{VMBATCH} --config {site.config} run --image bar:in=none -- echo done"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], cwd="/tmp", capture_output=True, text=True, check=True)
    assert "vdb  " in shown.stdout and "% " in shown.stdout and "MiB/s" in shown.stdout
    run(site, "bar", "true")
    assert "vdb  100 %" in site.log()


def test_many_jobs_of_one_image_start_at_once(site: Site, server: fileserver.Server) -> None:
    url = server.put("many.raw", disk("many"))
    gets = server.gets
    machine(site, "many", f"<vbdisksource source='{url}?drip=0.05&amp;piece=65536' copy_method='shared' format='raw'/>")
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(run(site, "many", READ).stdout)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["many\n"] * 4
    assert server.gets - gets == 1
    logs = [file.read_text() for file in Path(site.folder / "state/archive").glob("*/*/vmbatch.log")]
    assert any("waits for an image that local-" in text for text in logs)
