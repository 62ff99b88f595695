"""Images through the real Slurm: a user's own one by one flag; what cannot be had fails the job and no node."""

import os
import pwd
import shutil
from pathlib import Path

import devsite
import fileserver
import pytest
from devsite import DEV, ROOT
from slurmsite import SlurmSite


@pytest.fixture(scope="module")
def open_slurm(slurm: SlurmSite) -> SlurmSite:
    """The site also has a template for users' own images, and an image from a server that is down."""
    site = slurm.site
    xml = (ROOT / "domain-templates/default.xml").read_text()
    site.template("own", xml.replace("<vbuserimage/>", f"<vbuserimage paths='{site.folder}/work-*'/>"))
    site.offer("down", source="http://127.0.0.1:9/image.qcow2", memory_mib=192)
    site.sections["users"] = {"templates": ["own"]}
    site.configure()
    return slurm


def submit(slurm: SlurmSite, owner: pwd.struct_passwd, work: Path, request: str) -> str:
    script = "#!/bin/bash\necho $(id -un) in $(hostname)\nexit 3\n"
    return slurm.cluster.submit(script, f"--vm={request}", user=owner.pw_uid, cwd=work)


def test_a_users_own_image_by_one_flag(open_slurm: SlurmSite, alice: pwd.struct_passwd, work: Path) -> None:
    devsite.image("tiny-small")
    own = work / "my.qcow2"
    shutil.copyfile(DEV / "images/tiny-small.qcow2", own)
    own.chmod(0o600)
    os.chown(own, alice.pw_uid, alice.pw_gid)
    job = submit(open_slurm, alice, work, f"{own}:in=none")
    assert open_slurm.cluster.wait(job)["ExitCode"] == "3:0", open_slurm.out(job, work)
    assert open_slurm.out(job, work) == f"vmbalice in job-{job}\n"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("/etc/hostname", "lies where no files may come from"),
        ("/root/x.qcow2", "as vmbalice: Permission denied"),
        ("down", "127.0.0.1"),
        ("tiny:network=isolated", '<vbuseroption name="network"/>'),
    ],
)
def test_what_cannot_be_had_fails_the_job_with_a_sentence_and_spares_the_node(
    open_slurm: SlurmSite, alice: pwd.struct_passwd, work: Path, request_: str, said: str
) -> None:
    job = submit(open_slurm, alice, work, request_)
    assert open_slurm.cluster.wait(job)["ExitCode"] == "125:0"
    assert said in open_slurm.out(job, work)
    states = open_slurm.cluster.call("/usr/bin/sinfo", "-h", "-o", "%T").stdout.split()
    assert not {"drained", "draining", "down"} & set(states), states


def test_a_hash_that_is_wrong_is_the_administrators_to_mend(
    open_slurm: SlurmSite, alice: pwd.struct_passwd, work: Path
) -> None:
    folder = open_slurm.site.folder / "www"
    folder.mkdir(exist_ok=True)
    with fileserver.serving(folder) as server:
        url = server.put("i.raw", b"x" * 512)
        open_slurm.site.offer("wrong", source=url, format="raw", checksum="md5:" + "0" * 32, memory_mib=192)
        job = submit(open_slurm, alice, work, "wrong")
        assert open_slurm.cluster.wait(job)["ExitCode"] == "125:0"
    assert "its md5 is" in open_slurm.out(job, work)
