"""Pieces of messages: counts with their noun, and lists that are cut after a few entries."""

from collections import Counter

import pytest

from uotft.core.text import counted, indented, plural, some


@pytest.mark.parametrize(
    ("names", "written"),
    [("", ""), ("a", "a"), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")],
)
def test_a_list_is_cut_after_five_names(names: str, written: str) -> None:
    assert some(names) == written


def test_another_limit_and_an_iterator() -> None:
    assert some(iter("abc"), 1) == "a and 2 more"


def test_lines_below_a_message() -> None:
    assert "wrong:" + indented("abc", 2) == "wrong:\n  a\n  b\n  and 1 more"
    assert indented([]) == ""


def test_counts_with_their_noun() -> None:
    assert plural(1, "file") == "1 file"
    assert plural(2000, "file") == "2,000 files"
    counts = Counter({".mat": 5, ".txt": 7})
    assert counted(counts, "file", ", no images") == "12 files, no images: 7 .txt, 5 .mat"
