"""vmbatch.toml: every wrong key, type and unit names file, key and what is right."""

import os
from pathlib import Path

import pytest
import things

from vmbatch import config, settings
from vmbatch.commands.config import explained
from vmbatch.errors import SiteError


def test_every_key_is_documented_and_explained_text_loads_again(tmp_path: Path) -> None:
    for section, one in settings.documented():
        assert len(one.metadata["help"]) > 10, f"{section}.{one.name}"
    before = things.config(tmp_path)
    again = things.config(tmp_path, explained(before))
    for section in config.SECTIONS:
        assert getattr(before, section) == getattr(again, section)


def test_amounts_may_carry_a_unit(tmp_path: Path) -> None:
    limits = things.config(tmp_path, '[limits]\nmax_guest_memory_mib = "2G"\nboot_timeout_s = "5m"\n').limits
    assert (limits.max_guest_memory_mib, limits.boot_timeout_s) == (2048, 300)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[limits]\nmax_guest = 3", "limits.max_guest", "max_guests"),
        ("[limit]\nx = 3", "[limit]", "[limits]"),
        ("[limits]\nmax_guests = 'three'", "limits.max_guests is 'three'", "whole number"),
        ("[limits]\nmax_guests = -1", "-1", "whole number"),
        ("[limits]\nmax_guests = true", "True", "whole number"),
        ("[limits]\nmax_guest_memory_mib = '2 parsecs'", "2 parsecs", "512M"),
        ("[limits]\nboot_timeout_s = '5 G'", "5 G", "90s"),
        ("[limits]\nboot_timeout_s = 1.5", "1.5", "seconds"),
        ("[accelerator]\nallow_tcg = 'yes'", "'yes'", "true or false"),
        ("[paths]\nstate = 3", "paths.state is 3", "path"),
        ("[network]\ndefault = 'bridge'", "'bridge'", "nat, user"),
        ("[network]\ndeny = 'all'", "'all'", "list"),
        ("limits = 3", "limits is a section", ""),
        ("[limits", "not valid TOML", ""),
        ("\xff", "not valid TOML", ""),
    ],
)
def test_a_wrong_file_is_an_error_with_file_key_and_mend(text: str, said: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "vmbatch.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SiteError) as caught:
        config.load(file)
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"none\.toml"):
        config.load(tmp_path / "none.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule; make test runs as root")
@pytest.mark.parametrize("culprit", ["file", "folder"])
@pytest.mark.parametrize("fault", ["mode", "owner"])
def test_root_refuses_a_file_that_others_may_write(culprit: str, fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    file = folder / "vmbatch.toml"
    file.write_text("")
    config.load(file)
    place = file if culprit == "file" else folder
    if fault == "mode":
        place.chmod(0o777)
    else:
        os.chown(place, 65534, 65534)
    with pytest.raises(SiteError) as caught:
        config.load(file)
    assert str(place) in str(caught.value)
    assert caught.value.hint.startswith("chmod go-w" if fault == "mode" else "chown root")


def test_an_ordinary_users_paths_follow_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    file = tmp_path / "vmbatch.toml"
    file.write_text("")
    conf = config.load(file)
    assert conf.paths.state == Path("/x/state/vmbatch")
    assert conf.paths.run == tmp_path / "vmbatch"
    assert conf.libvirt.uri == "qemu:///session"
    assert conf.network.default == "user"
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name)
    conf = config.load(file)
    assert conf.paths.state == config.home() / ".local/state/vmbatch"
    assert conf.paths.run == Path("/tmp/vmbatch-runtime-65534/vmbatch")
