"""Files of class means that a user brings: what is taken, and what is refused by name and row."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save, save_file

from uotft.core.errors import UserError
from uotft.core.records import ClassBank
from uotft.selection import banks, transport
from uotft.selection.classifier import classifier_bank, stand_ins

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


TRAVELLING = ClassBank(
    MEANS.astype(np.float32),
    ("n01440764 tench", "K\u00e4se", 'a "quoted" one'),
    np.array([1, 2, 3]),
    trunk=np.arange(12.0).reshape(3, 4),
    weights="ab" * 32,
    origin="6 images of birds",
    classifier=True,
)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_all_that_a_bank_says_survives_the_disk(tmp_path: Path, ending: str) -> None:
    images = ClassBank(MEANS, ("a", "b", "c"), np.array([1, 2, 3]), "net", "", "image",
                       np.array([0, 2]), tuple("xxy"), data="d", features="f")  # fmt: skip
    for bank in (TRAVELLING, images):
        banks.write(tmp_path / f"s.{ending}", bank)
        again = banks.read(tmp_path / f"s.{ending}")
        for name, value in vars(bank).items():
            if name != "file":
                assert np.array_equal(getattr(again, name), value), name
        assert again.means.dtype == bank.means.dtype


def test_a_bank_has_one_form_in_bytes(tmp_path: Path) -> None:
    """So its digest can be published, and npz that were made before do not change."""
    found = set()
    for _ in range(20):
        banks.write(tmp_path / "s.safetensors", TRAVELLING)
        found.add(banks.fingerprint(banks.read(tmp_path / "s.safetensors")))
    assert len(found) == 1
    plain = ClassBank(MEANS, tuple("abc"), np.array([1, 2, 3]), "net", data="d", features="f")
    banks.write(tmp_path / "s.npz", plain)
    texts = {"backbone": np.array("net"), "data": np.array("d"), "features": np.array("f")}
    np.savez_compressed(
        tmp_path / "before.npz", means=MEANS, names=np.array([*"abc"]), counts=plain.counts,
        **texts, unit=np.array("class"), members=plain.members, labels=np.array((), np.str_),
    )  # fmt: skip
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "before.npz").read_bytes()


def test_no_byte_of_a_safetensors_bank_may_change(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    banks.write(path, TRAVELLING)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"s\.safetensors: "):
            pytest.fail(f"byte {at} of {len(whole)}: read as {banks.read(path)}")
    for length in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(banks.BadBank, match=r"s\.safetensors: not a readable safetensors"):
            banks.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "a bank of format 2, and this version of uotft reads 1: update uotft"),
        ('{"format": 1, "names": ["a", "b", "c"]}', "damaged"),
        ("[]", "not a readable safetensors file"),
        ("{", "not a readable safetensors file"),
        ("[" * 5000, "not a readable safetensors file"),
    ],
)
def test_what_another_version_or_nobody_wrote(tmp_path: Path, text: str, message: str) -> None:
    save_file({"means": MEANS}, tmp_path / "s.safetensors", {banks.KEY: text})
    with pytest.raises(banks.BadBank, match=rf"s\.safetensors: {message}"):
        banks.read(tmp_path / "s.safetensors")


def test_tensors_of_another_tool_are_a_bank_if_they_have_means(tmp_path: Path) -> None:
    save_file({"means": MEANS, "counts": np.arange(3)}, tmp_path / "s.safetensors", {"by": "me"})
    bank = banks.read(tmp_path / "s.safetensors")
    assert (bank.names, bank.counts.tolist(), bank.weights) == (("0", "1", "2"), [0, 1, 2], "")
    save_file({f"layer{i}.weight": MEANS for i in range(60)}, tmp_path / "s.safetensors")
    with pytest.raises(banks.BadBank, match=r"no array 'means'.*it holds layer.* and 52 more"):
        banks.read(tmp_path / "s.safetensors")


def test_texts_in_a_bank_that_are_no_texts(tmp_path: Path) -> None:
    """Sealed rightly, so by somebody who knew how, and still refused."""
    for about in ({"names": [1.5, 2.5, 3.5]}, {"names": [["a"], []]}, {"names": "abc"},
                  {"names": {"a": 1}}, {"unit": ["class", "x"]}, {"names": [*"aba"]}):  # fmt: skip
        about = {"format": 1, **about}
        tensors = {"means": MEANS}
        text = json.dumps({**about, "sha256": banks._seal(about, tensors)})
        (tmp_path / "s.safetensors").write_bytes(save(tensors, {banks.KEY: text}))
        with pytest.raises(banks.BadBank, match=r"s\.safetensors: .*(names|unit|class name|inhom)"):
            banks.read(tmp_path / "s.safetensors")


def test_what_another_tool_calls_weights_is_not_read(tmp_path: Path) -> None:
    others = {"weights": np.ones(3), "origin": np.arange(2), "classifier": np.ones((2, 2))}
    np.savez(tmp_path / "s.npz", means=MEANS, **others)
    bank = banks.read(tmp_path / "s.npz")
    assert (bank.weights, bank.origin, bank.classifier) == ("", "", False)


def test_rows_of_a_classifier_have_no_lengths() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    rows = classifier_bank(weight, tuple("abc"), "ab" * 32)
    np.testing.assert_array_equal(rows.means, stand_ins(weight))
    some = classifier_bank(weight, tuple("ca"), "", [2, 0])
    np.testing.assert_array_equal(some.means, rows.means[[2, 0]], "made of all rows")
    assert (rows.counts.tolist(), rows.weights, rows.classifier) == ([1, 1, 1], "ab" * 32, True)
    means = ClassBank(MEANS, tuple("abc"), np.ones(3, int))
    assert np.isfinite(transport.cost(rows, means, "cosine")).all()
    for ask in (transport.cost, transport.check):
        with pytest.raises(transport.BadMeans, match="metric: got 'l2', but source holds rows of"):
            ask(rows, means, "l2")


def test_a_bank_without_a_file_has_a_fingerprint() -> None:
    assert banks.fingerprint(TRAVELLING) != banks.fingerprint(
        ClassBank(MEANS, tuple("abc"), np.ones(3, int))
    )
    found = hashlib.sha256(json.dumps([*"abc"]).encode() + MEANS.tobytes()).hexdigest()
    assert banks.fingerprint(ClassBank(MEANS, tuple("abc"), np.ones(3, int))) == found


def test_a_plain_array_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", MEANS)
    means = banks.read(tmp_path / "s.npy").means
    assert np.array_equal(means, MEANS)
    assert not means.flags.owndata


def test_whole_numbers_become_real_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=np.array([[1, 2]], np.int16))
    assert banks.read(tmp_path / "s.npz").means.dtype == np.float64


UMLAUT = "K\u00e4se"
LATIN = np.array([f"{UMLAUT}{i}".encode("latin-1") for i in range(3)])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.astype(">f4"),
        lambda m: m.astype(">f8"),
        lambda m: m.astype(np.float16),
        lambda m: m.astype(np.longdouble),
        lambda m: m.astype(np.uint8),
        np.asfortranarray,
    ],
)
def test_numbers_as_other_tools_write_them(tmp_path: Path, change: Callable) -> None:
    """Torch takes neither the other byte order nor a long double."""
    np.savez(tmp_path / "s.npz", means=change(MEANS))
    np.save(tmp_path / "s.npy", change(MEANS))
    for name in ("s.npz", "s.npy"):
        means = banks.read(tmp_path / name).means
        assert np.array_equal(means, MEANS)
        assert means.dtype.isnative
        assert means.itemsize <= 8
        assert torch.as_tensor(np.array(means)).shape == (3, 2)


def test_halves_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=np.full((9, 4), 60000, np.float16))
    bank = banks.read(tmp_path / "s.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(transport.cost(bank, bank, "cosine")).all()


def test_names_as_bytes_are_read_as_utf8(tmp_path: Path) -> None:
    names = np.array([f"{UMLAUT}{i}".encode() for i in range(3)])
    np.savez(tmp_path / "s.npz", means=MEANS, names=names, backbone=np.array(b"r18"))
    bank = banks.read(tmp_path / "s.npz")
    assert bank.names == tuple(f"{UMLAUT}{i}" for i in range(3))
    assert bank.backbone == "r18"


def test_what_another_tool_calls_features_and_data_is_not_read(tmp_path: Path) -> None:
    others = {"features": np.ones((50, 2), np.float32), "data": np.ones(7)}
    np.savez(tmp_path / "s.npz", means=MEANS, **others)
    bank = banks.read(tmp_path / "s.npz")
    assert (bank.features, bank.data) == ("", "")


def test_rows_with_a_class_but_no_name_are_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=MEANS, labels=np.array([7, 8, 7]))
    bank = banks.read(tmp_path / "s.npz")
    assert (bank.unit, bank.labels) == ("image", ("7", "8", "7"))
    np.savez(tmp_path / "s.npz", means=MEANS, labels=np.array([7, 8, 7]), names=np.array([*"abc"]))
    assert banks.read(tmp_path / "s.npz").unit == "class"


def test_a_file_that_is_no_bank_by_ending_and_bytes(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "s.csv", MEANS, delimiter=",")
    with pytest.raises(banks.BadBank, match=r"s\.csv: neither npz nor npy.*np\.savez"):
        banks.brought(str(tmp_path / "s.csv"))


def test_an_array_of_objects_is_refused_by_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", means=MEANS, names=np.array([*"abc"], dtype=object))
    with pytest.raises(UserError, match=r"names holds Python objects.*dtype=str"):
        banks.read(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": MEANS}, r"no array 'means'.*it holds mean"),
        ({"means": MEANS[0]}, r"shape \(2,\)"),
        ({"means": MEANS.astype(complex)}, "type complex128"),
        ({"means": MEANS[:0]}, "empty"),
        ({"means": MEANS[:, :0]}, "empty"),
        (
            {"means": MEANS, "names": np.array(["a", "b", "a"])},
            r"two rows have the class name 'a' \(0 and 2\)",
        ),
        ({"means": MEANS, "names": np.array(["a"])}, r"names has shape \(1,\) for 3 rows"),
        ({"means": MEANS, "counts": np.ones(4)}, r"counts has shape \(4,\) for 3 rows"),
        ({"arr_0": MEANS}, r"it holds arr_0; np\.savez\(FILE, means="),
        ({"means": MEANS, "names": np.array([*"ab"])}, r"shape \(3, 2\) look transposed"),
        ({"means": MEANS, "names": np.array([["a"], ["b"], ["c"]])}, r"names has shape \(3, 1\)"),
        ({"means": MEANS, "names": np.ones(3)}, "names is an array of type float64"),
        ({"means": MEANS, "names": LATIN}, r"names holds bytes that are no UTF-8 \(row 0: b'K"),
        ({"means": MEANS, "labels": np.arange(50)}, r"labels has shape \(50,\) for 3 rows"),
        ({"means": MEANS, "labels": np.ones(3)}, "labels is an array of type float64"),
        ({"means": MEANS, "labels": np.ones((3, 2), int)}, r"labels has shape \(3, 2\)"),
        ({"means": MEANS, "members": np.ones(5)}, "members, an array of shape .* float64"),
        ({"means": MEANS, "members": np.array([0, 3])}, "members.*below 3"),
        ({"means": MEANS, "trunk": np.ones((2, 9))}, r"trunk, an array of shape \(2, 9\)"),
        (
            {"means": MEANS, "unit": np.array("photo")},
            "unit is 'photo'; known are class, cluster and image",
        ),
        ({"means": MEANS, "backbone": np.ones(2)}, r"backbone is an array of shape \(2,\)"),
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


def test_banks_of_two_files_of_weights_are_refused() -> None:
    first, second, unknown = (
        ClassBank(MEANS, tuple("abc"), np.ones(3, int), file=f"{name}.npz", weights=name)
        for name in ("r18", "r50", "")
    )
    with pytest.raises(
        banks.BadBank, match=r"r18\.npz and r50\.npz .*different weights \(r18, r50"
    ):
        banks.same_backbone(first, second)
    banks.same_backbone(first, unknown)
    assert banks.made_with(first, "r18", "resnet18")
    assert not banks.made_with(unknown, "r18", "resnet18")
    with pytest.raises(banks.BadBank, match=r"r50\.npz was made with other weights \(r50\) than"):
        banks.made_with(second, "r18", "resnet18")
