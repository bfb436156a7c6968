"""RandAugment: torchvision's fourteen operations, drawn by our own generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from support import pictures
from uotft.core.settings import Augment
from uotft.training.randaugment import operations, randaugment

#: torchvision's names, in the order of our table
NAMES = """Identity Brightness Color Contrast Sharpness Rotate ShearX ShearY TranslateX TranslateY
Posterize Solarize AutoContrast Equalize""".split()  # noqa: SIM905
STRENGTHS = 0, 3, 10, 30


def images(n: int = 4) -> Tensor:
    """(n, 3, 40, 48) in [0, 1]; the last one is dark, so that contrast has something to do."""
    scenes = [np.asarray(pictures.scene(i, (48, 40))) for i in range(n)]
    found = torch.as_tensor(np.stack(scenes)).permute(0, 3, 1, 2) / 255
    found[-1] *= 0.3
    return found


def augmented(magnitude: int = 10, seed: int = 0, share: slice = slice(0, 16)) -> Tensor:
    rng, augment = np.random.default_rng(seed), Augment(operations=2, magnitude=magnitude)
    return randaugment(images(16)[share] * 2 - 1, augment, rng, 16, share)


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvisions(name: str) -> None:
    theirs = v2.RandAugment()
    strengths, signed = theirs._AUGMENTATION_SPACE[name]
    ours = operations()[NAMES.index(name)]
    for magnitude in STRENGTHS:
        for sign in (-1, 1) if signed else (1,):
            values = strengths(31, 40, 48)
            value = 0.0 if values is None else float(values[magnitude]) * sign
            for image in images():
                expected = theirs._apply_image_or_video_transform(
                    image, name, value, v2.InterpolationMode.NEAREST, theirs._fill
                )
                found = ours(image[None], magnitude / 30, sign)[0]
                assert torch.allclose(found, expected, atol=1e-5), (name, magnitude, sign)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    operation = operations()[NAMES.index(name)]
    one_by_one = torch.cat([operation(image[None], 0.5, -1) for image in images()])
    assert torch.allclose(operation(images(), 0.5, -1), one_by_one, atol=1e-6)


def test_the_table_is_whole() -> None:
    assert sorted(NAMES) == sorted(v2.RandAugment()._AUGMENTATION_SPACE)
    assert len(operations()) == len(NAMES)


def test_grey_images_are_taken_too() -> None:
    grey = images().mean(1, keepdim=True) * 2 - 1
    made = randaugment(
        grey, Augment(operations=30), np.random.default_rng(0), len(grey), slice(None)
    )
    assert made.shape == grey.shape
    assert made.isfinite().all()


def test_the_same_seed_gives_the_same_bytes_within_the_range_of_pixels() -> None:
    first = augmented()
    assert torch.equal(first, augmented())
    assert not torch.allclose(first, augmented(seed=1), atol=0.1)
    assert first.min() >= -1
    assert first.max() <= 1


def test_images_are_drawn_apart() -> None:
    still = images(16) * 2 - 1
    changed = (augmented(30) - still).abs().mean((1, 2, 3))
    assert len(set(changed.round(decimals=4).tolist())) > 10


@pytest.mark.parametrize("world", [2, 4])
def test_the_number_of_processes_does_not_matter(world: int) -> None:
    shares = [slice(rank * 16 // world, (rank + 1) * 16 // world) for rank in range(world)]
    apart = torch.cat([augmented(share=share) for share in shares])
    assert torch.allclose(apart, augmented(), atol=1e-6)


def test_the_input_stays_as_it_was() -> None:
    before = images(16) * 2 - 1
    given = before.clone()
    augment = Augment(operations=2)
    randaugment(given, augment, np.random.default_rng(0), 16, slice(None))
    assert torch.equal(given, before)
