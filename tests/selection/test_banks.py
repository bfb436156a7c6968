"""Files of class means that a user brings: what is taken, and what is refused by name and row."""

from pathlib import Path

import numpy as np
import pytest

from uotft.core.records import ClassBank
from uotft.selection import banks

MEANS = np.arange(1.0, 7).reshape(3, 2)


def test_means_alone_are_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=MEANS)
    bank = banks.read(tmp_path / "s.npz")
    assert bank.names == ("0", "1", "2")
    assert bank.counts.tolist() == [1, 1, 1]
    assert bank.file == str(tmp_path / "s.npz")


def test_a_bank_survives_the_disk(tmp_path: Path) -> None:
    bank = ClassBank(
        MEANS, tuple("abc"), np.array([1, 2, 3]), "net", "", "image", np.arange(3), tuple("xxy")
    )
    banks.write(tmp_path / "s.npz", bank)
    again = banks.read(tmp_path / "s.npz")
    assert np.array_equal(again.means, MEANS)
    assert (again.names, again.backbone, again.unit) == (bank.names, "net", "image")
    assert again.labels == tuple("xxy")
    assert np.array_equal(again.members, np.arange(3))


def test_a_plain_array_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", MEANS)
    means = banks.read(tmp_path / "s.npy").means
    assert np.array_equal(means, MEANS)
    assert not means.flags.owndata


def test_whole_numbers_become_real_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=np.array([[1, 2]], np.int16))
    assert banks.read(tmp_path / "s.npz").means.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": MEANS}, r"no array 'means'.*it holds mean"),
        ({"means": MEANS[0]}, r"shape \(2,\)"),
        ({"means": MEANS.astype(complex)}, "type complex128"),
        ({"means": MEANS[:0]}, "empty"),
        ({"means": MEANS[:, :0]}, "empty"),
        ({"means": MEANS, "names": np.array(["a", "b", "a"])}, r"'a'.*twice \(rows 0 and 2\)"),
        ({"means": MEANS, "names": np.array(["a"])}, r"names has shape \(1,\) for 3 rows"),
        ({"means": MEANS, "counts": np.ones(4)}, r"counts has shape \(4,\) for 3 rows"),
    ],
)
def test_refused_with_the_file_and_the_row(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(banks.BadBank, match=rf"s\.npz: .*{message}"):
        banks.read(tmp_path / "s.npz")


def test_two_backbones_are_refused() -> None:
    first, second, unknown = (
        ClassBank(MEANS, tuple("abc"), np.ones(3, int), backbone, file=f"{backbone}.npz")
        for backbone in ("r18", "r50", "")
    )
    with pytest.raises(banks.BadBank, match=r"r18\.npz and r50\.npz .*different backbones"):
        banks.same_backbone(first, second)
    banks.same_backbone(first, unknown)
