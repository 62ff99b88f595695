"""Names and records."""

import pytest
import things
from hypothesis import given
from hypothesis import strategies as st

from vmbatch.model import Guest
from vmbatch.names import make_key, tap_name
from vmbatch.records import from_json, to_json

PART = st.text(min_size=1, max_size=12)


def test_a_key_is_readable_and_safe() -> None:
    assert make_key("slurm", "prod", "n-12", "4711") == "slurm-prod-n-12-4711"
    assert make_key("torque", "c", "n1", "29[3].my-server") == "torque-c-n1-29~5b3~5d.my~2dserver"


@given(PART, PART, PART, PART, PART, PART)
def test_two_jobs_never_share_a_key(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    one, other = make_key("slurm", a, b, c), make_key("slurm", d, e, f)
    assert (one == other) == ((a, b, c) == (d, e, f))
    assert len(one) <= 64
    assert not set(one) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")


def test_an_interface_name_fits_the_kernel() -> None:
    assert len(tap_name("vmbatch", "vmbatch-slurm-prod-n1-1.1")) == 15


def test_a_guest_survives_being_written(tmp_path: object) -> None:
    guest = things.guest(things.site(tmp_path))  # type: ignore[arg-type]
    assert from_json(Guest, to_json(guest)) == guest
    assert '"schema": 1' in to_json(guest)


@given(st.text(max_size=200) | st.sampled_from(["{}", "[]", "null", '{"schema": 1}', "[" * 5000]))
def test_a_broken_record_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(Guest, text)
