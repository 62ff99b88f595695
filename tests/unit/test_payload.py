"""What the guest is told."""

import json
import subprocess
from pathlib import Path

import pytest
import things
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbatch import payload
from vmbatch.model import Payload, Person


def told(**changes: object) -> Payload:
    values: dict[str, object] = {
        "person": things.PERSON,
        "hostname": "job-1",
        "instance": "uuid",
        "workdir": Path("/home/alice/run"),
        "job_path": "",
        "nics": (),
        "client_public_key": "ssh-ed25519 AAAA\n",
        "host_private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET\n",
        "host_public_key": "ssh-ed25519 BBBB\n",
    }
    return Payload(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def nics(tmp_path: Path) -> tuple[object, ...]:
    return things.guest(things.site(tmp_path)).nics


@pytest.mark.programs
@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["busybox", "sh"]])
def test_no_text_of_a_user_breaks_out_of_the_parameters(shell: list[str], text: str) -> None:
    person = Person("alice", 1000, 1000, Path("/home/alice"), (("alice", 1000),))
    nic = things.guest(CONFIG).nics
    lines = payload.params(told(person=person, workdir=Path("/w", text.lstrip("/") or "x"), nics=nic))
    done = subprocess.run(
        [*shell, "-c", lines + 'printf "%s\\0" "$VMBATCH_WORKDIR" "$VMBATCH_UID"'],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == str(Path("/w", text.lstrip("/") or "x")).encode() + b"\x001000\0"


def test_nothing_secret_is_in_what_cloud_init_keeps(nics: tuple[object, ...]) -> None:
    files = payload.files(told(nics=nics), b"init", b"helper")
    for name in ("user-data", "meta-data", "network-config"):
        assert b"SECRET" not in files[name][0]
    assert all(mode & 0o077 == 0 for _, mode in files.values())


def test_user_data_is_a_cloud_config_that_runs_our_script_only(nics: tuple[object, ...]) -> None:
    text = payload.user_data()
    assert text.startswith("#cloud-config\n")
    config = json.loads(text.partition("\n")[2])
    assert (config["cloud_init_modules"], config["cloud_final_modules"]) == (["bootcmd"], [])
    assert "init.sh start-cloud" in config["bootcmd"][0][2]


def test_network_config_is_static_or_dhcp(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    static = json.loads(payload.network_config(things.guest(conf).nics))["config"][0]
    assert static["subnets"][0]["type"] == "static"
    assert static["mac_address"].startswith("52:54:00:76:")


@pytest.fixture(autouse=True)
def _config(tmp_path: Path) -> None:
    global CONFIG
    CONFIG = things.site(tmp_path)
