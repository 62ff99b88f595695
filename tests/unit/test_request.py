"""The request grammar: any text gives a Request or a UserError, and the canonical form round-trips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbatch.errors import UserError
from vmbatch.model import Request
from vmbatch.request import FIELDS, canonical, parse

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
PATHS = PLAIN.filter(lambda text: ".." not in text.split("/") and text != "none")
REQUESTS = st.builds(
    Request,
    image=PLAIN,
    template=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    memory_mib=st.none() | st.integers(1, 10**9),
    cpus=st.none() | st.integers(1, 9999),
    inputs=st.none() | st.just(()) | st.lists(PATHS, min_size=1, max_size=4).map(tuple),
)


@given(REQUESTS)
def test_the_canonical_form_round_trips(request: Request) -> None:
    text = canonical(request)
    if len(text) <= 1000:
        assert parse(text) == request
        assert canonical(parse(text)) == text
        assert set(text.encode()) <= set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=@%+?~-")


@given(
    st.text(st.characters(), max_size=65536)
    | st.text(":=%abin./ \0é\udc80", max_size=300)
    | st.lists(st.sampled_from([f"{one.name}=" for one in FIELDS] + [":", "%", "x", "%zz", "1G"]), max_size=40).map("".join)
)
def test_any_text_gives_a_request_or_a_user_error(text: str) -> None:
    try:
        request = parse(text)
    except UserError as error:
        assert error.hint
    else:
        assert parse(canonical(request)) == request or len(canonical(request)) > 1000


def test_64_kib_of_anything_is_a_user_error() -> None:
    with pytest.raises(UserError, match="65536 bytes"):
        parse("a" * 65536)


def test_a_colon_separates_only_before_a_key() -> None:
    assert parse("a:b:memory=1G") == Request("a:b", memory_mib=1024)
    assert parse("a%3Amemory=1G") == Request("a:memory=1G")
    assert canonical(Request("a:memory=1G")) == "a%3Amemory=1G"


def test_lists_repeat_the_key_and_none_brings_nothing() -> None:
    assert parse("t:in=a b:in=c,d").inputs == ("a b", "c,d")
    assert parse("t:in=none").inputs == ()
    assert parse("t").inputs is None
    assert parse("t:in=./none").inputs == ("./none",)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "empty", "IMAGE"),
        (":memory=1G", "names no image", "tiny"),
        ("t:memroy=1G", "no key 'memroy'", "memory="),
        ("t:memory=lots", "lots", "memory=2G"),
        ("t:memory=0", "at least 1M", "memory=2G"),
        ("t:cpus=0", "1 to 9999", "cpus=2"),
        ("t:cpus=1:cpus=2", "twice", "leave one"),
        ("t:in=../x", "without '..'", "in=data"),
        ("t:in=none:in=x", "in=none and another", "in=./none"),
        ("t%", "lone %", "%25"),
        ("t%00", "zero byte", "leave"),
        ("t:template=../x", "plain name", "template=gpu"),
    ],
)
def test_a_wrong_request_says_what_is_wrong_and_what_to_type(text: str, said: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert said in caught.value.message
    assert hint in caught.value.hint
