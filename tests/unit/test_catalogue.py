"""images.d: one file an image."""

import os
from pathlib import Path

import pytest
import things

from vmbatch import catalogue
from vmbatch.errors import SiteError, UserError
from vmbatch.model import Image


def entry(tmp_path: Path, text: str, name: str = "el9") -> Image:
    file = tmp_path / f"{name}.toml"
    file.write_text(text)
    return catalogue.read_entry(file, Path("/images"), tmp_path / "store", trusted=False)


def test_relative_sources_lie_in_the_images_folder(tmp_path: Path) -> None:
    image = entry(tmp_path, 'source = "el9.qcow2"\nkernel = "/boot/k"\nmemory_mib = "1G"\n')
    assert (image.source, image.kernel, image.memory_mib) == ("/images/el9.qcow2", Path("/boot/k"), 1024)


def test_every_field_of_an_image_is_a_documented_key() -> None:
    assert set(catalogue.KEYS) == {one for one in Image.__dataclass_fields__ if one not in ("name", "own")}


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('source = ""', "source is empty", 'source = "el9.qcow2"'),
        ('source = "sha512:12"', "the store has no image", "vmbatch image import"),
        ('source = "x"\nchecksum = "sha3:12"', "unknown hash function 'sha3'", "md5, sha1, sha256, sha512"),
        ('source = "x"\nchecksum = "md5:12"', "no md5 hash", "32"),
        ('source = "x"\nfromat = "raw"', "no key fromat", "format"),
        ('source = "x"\nformat = "ova"', "format is 'ova'", "qcow2, raw"),
        ('source = "x"\nnic_model = "ne2000"', "ne2000", "virtio, e1000"),
        ('source = "x"\ncpus = "two"', "cpus is 'two'", "whole number"),
    ],
)
def test_a_wrong_entry_names_file_key_and_what_is_right(text: str, said: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError) as caught:
        entry(tmp_path, text)
    assert "el9.toml" in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_an_unknown_image_lists_the_nearest(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    (tmp_path / "catalogue").mkdir()
    for name in ("debian12", "debian11", "el9"):
        (tmp_path / "catalogue" / f"{name}.toml").write_text('source = "x"')
    with pytest.raises(UserError, match="no image 'debain12'") as caught:
        catalogue.find(conf, "debain12")
    assert caught.value.hint.startswith("the nearest are: debian1")
    assert "el9" not in caught.value.hint


def test_only_the_catalogue_is_asked_never_a_path(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "evil.toml").write_text('source = "/etc/shadow"')
    for name in ("../evil", str(tmp_path / "evil"), "", ".", "catalogue/../evil"):
        with pytest.raises(UserError):
            catalogue.find(conf, name)


def test_an_image_may_be_for_some_users_only(tmp_path: Path) -> None:
    catalogue.permit(entry(tmp_path, 'source = "x"'), things.PERSON)
    catalogue.permit(entry(tmp_path, 'source = "x"\nusers = ["alice"]'), things.PERSON)
    catalogue.permit(entry(tmp_path, 'source = "x"\ngroups = ["physics"]'), things.PERSON)
    with pytest.raises(UserError, match="not open to user alice"):
        catalogue.permit(entry(tmp_path, 'source = "x"\nusers = ["bob"]\ngroups = ["wheel"]'), things.PERSON)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule; make test runs as root")
def test_root_refuses_an_entry_that_others_may_write(tmp_path: Path) -> None:
    file = tmp_path / "el9.toml"
    file.write_text('source = "x"')
    file.chmod(0o666)
    with pytest.raises(SiteError, match="may write"):
        catalogue.read_entry(file, tmp_path, tmp_path, trusted=True)
