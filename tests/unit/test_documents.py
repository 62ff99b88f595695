"""What the documents name exists."""

import re

import pytest
from things import ROOT

NAMED = re.findall(r"`(tests/[^`]+)`", (ROOT / "FEATURES.md").read_text())


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_a_test_that_the_table_of_features_names_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert not function or f"def {function}(" in (ROOT / file).read_text()
    assert (ROOT / file).is_file()


def test_every_row_of_the_table_names_a_test() -> None:
    rows = [line for line in (ROOT / "FEATURES.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for last, row in zip(["", *rows], rows, strict=False):
        assert "`tests/" in row or ("the same |" in row and "`tests/" in last), row
