"""Slots: how many guests the node takes at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import things

from vmbatch import slots
from vmbatch.journal import Journal
from vmbatch.model import Size

SIZE = Size(1, 400, 500)


def test_the_lowest_free_index_is_taken(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    journals = [Journal.begin(conf.paths.state, f"k{i}") for i in range(4)]
    assert [slots.take(conf, one, SIZE).index for one in journals[:3]] == [0, 1, 2]
    slots.free(conf.paths.state / "slots", journals[1].name)
    assert slots.take(conf, journals[3], SIZE).index == 1


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("max_guests = 2", "2 of 2 guests are in use"),
        ("max_guest_memory_mib = 1200\nmax_guests = 9", "2 of 9 guests and 1000 of 1200 MiB are in use"),
    ],
)
def test_a_full_node_says_the_numbers(limits: str, said: str, tmp_path: Path) -> None:
    conf = things.site(tmp_path, f"[limits]\nslot_timeout_s = 0\n{limits}\n")
    for i in range(2):
        slots.take(conf, Journal.begin(conf.paths.state, f"k{i}"), SIZE)
    with pytest.raises(slots.NoSlotError) as caught:
        slots.take(conf, Journal.begin(conf.paths.state, "k9"), SIZE)
    assert said in caught.value.message
    assert "500 MiB" in caught.value.message


def test_removing_a_slot_never_takes_anothers(tmp_path: Path) -> None:
    conf = things.site(tmp_path)
    first, second = (Journal.begin(conf.paths.state, f"k{i}") for i in range(2))
    slots.take(conf, first, SIZE)
    second.will("slot", second.name)  # stopped before the slot was made
    slots.free(conf.paths.state / "slots", second.name)
    slots.free(conf.paths.state / "slots", second.name)
    assert [file.name for file in (conf.paths.state / "slots").glob("[!.]*")] == [first.name]


def test_a_port_in_use_is_passed_over(tmp_path: Path) -> None:
    import socket

    conf = things.site(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        conf = replace(conf, network=replace(conf.network, port_base=port))
        slot = slots.take(conf, Journal.begin(conf.paths.state, "k"), SIZE)
    assert slot.port == port + conf.limits.max_guests
