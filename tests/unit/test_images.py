import numpy as np
import pytest
import torch

from uotft.config import Augment
from uotft.images import Stream, to_input

IMAGES = np.random.default_rng(0).integers(0, 255, (10, 12, 12), dtype=np.uint8)
STILL = Augment(rotation=0.0, shear=0.0, zoom=0.0, shift=0.0)


def stream(augment: Augment = Augment(), **changes) -> Stream:  # noqa: B008
    settings = {"name": "target", "batch_size": 4, "seed": 5, "augment": augment} | changes
    return Stream(IMAGES, np.arange(10), **settings)


def test_every_image_comes_once_an_epoch() -> None:
    order = np.concatenate([stream().rows(step) for step in range(10)])
    assert all(sorted(epoch) == list(range(10)) for epoch in order.reshape(4, 10))


def test_order_follows_seed_and_name() -> None:
    orders = [stream(**c).rows(0).tolist() for c in ({}, {"seed": 6}, {"name": "source"})]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(world: int) -> None:
    whole = stream()[3]
    shares = [stream(rank=rank, world=world)[3] for rank in range(world)]
    assert torch.equal(torch.cat([s.labels for s in shares]), whole.labels)
    assert torch.allclose(torch.cat([s.images for s in shares]), whole.images, atol=1e-6)


@pytest.mark.parametrize("name", ["target", "source"])
def test_the_order_does_not_know_the_number_of_processes(name: str) -> None:
    for step in range(7):
        batches = [
            [stream(STILL, name=name, rank=rank, world=world)[step] for rank in range(world)]
            for world in (1, 2, 4)
        ]
        labels = [torch.cat([b.labels for b in shares]).tolist() for shares in batches]
        assert labels[0] == labels[1] == labels[2] == stream(name=name).rows(step).tolist()


def test_no_distortion_gives_the_pixels_back() -> None:
    still = stream(STILL)
    batch, rows = still[0], still.rows(0)
    assert torch.allclose(batch.images, to_input(torch.as_tensor(IMAGES[rows])), atol=1e-5)


def test_distortion_changes_pixels_and_repeats_exactly() -> None:
    moved, again = stream()[0].images, stream()[0].images
    assert torch.equal(moved, again)
    assert not torch.allclose(moved, stream(STILL)[0].images, atol=0.1)


def test_two_views_are_the_same_images_distorted_apart() -> None:
    weak, strong = stream(), stream(view=2)
    assert np.array_equal(weak.rows(3), strong.rows(3))
    assert torch.equal(weak[3].labels, strong[3].labels)
    assert not torch.allclose(weak[3].images, strong[3].images, atol=0.1)
    assert torch.equal(strong[3].images, stream(view=2)[3].images)


STRONG = Augment(contrast=0.5, cutout=0.5)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_strong_view_of_one(world: int) -> None:
    whole = stream(STRONG, view=2)[3].images
    shares = [stream(STRONG, view=2, rank=r, world=world)[3].images for r in range(world)]
    assert torch.allclose(torch.cat(shares), whole, atol=1e-6)


def test_cutout_blanks_one_square_inside_each_picture() -> None:
    still, cut = stream(STILL)[0].images, stream(STILL.model_copy(update={"cutout": 0.5}))[0].images
    for before, after in zip(still, cut, strict=True):
        changed = before[0] != after[0]
        rows, columns = (changed.any(axis).nonzero() for axis in (1, 0))
        assert (after[0][changed] == -1).all()
        assert rows.max() - rows.min() <= 5
        assert columns.max() - columns.min() <= 5
        assert changed.sum() >= 30, "36 pixels, less those that were blank before"


def test_contrast_keeps_the_mean_and_scales_the_rest() -> None:
    grey = np.random.default_rng(1).integers(100, 150, (10, 12, 12), dtype=np.uint8)
    made = []
    for augment in (STILL, STILL.model_copy(update={"contrast": 0.5})):
        made.append(Stream(grey, np.arange(10), name="a", batch_size=4, seed=0, augment=augment)[0])
    still, moved = (batch.images.flatten(1) for batch in made)
    assert torch.allclose(still.mean(1), moved.mean(1), atol=1e-5)
    factors = moved.std(1) / still.std(1)
    assert ((factors > 0.5) & (factors < 1.5)).all()
    assert factors.std() > 0.05, "each image has its own"


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="source stream has no images"):
        Stream(IMAGES[:0], np.arange(0), name="source", batch_size=4, seed=0, augment=STILL)


COLOUR = np.random.default_rng(1).integers(0, 255, (5, 6, 8, 3), dtype=np.uint8)


def test_colour_pixels_keep_their_place() -> None:
    images = to_input(torch.as_tensor(COLOUR), 3)
    assert images.shape == (5, 3, 6, 8)
    assert float(images[2, 1, 3, 4]) == pytest.approx(COLOUR[2, 3, 4, 1] / 127.5 - 1, abs=1e-6)


def test_grey_is_repeated_and_colour_becomes_grey_as_in_pillow() -> None:
    from PIL import Image

    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in COLOUR])
    ours = to_input(torch.as_tensor(COLOUR), 1)
    assert ours.shape == (5, 1, 6, 8)
    assert torch.allclose(ours, to_input(torch.as_tensor(grey)), atol=1.01 / 127.5)
    three = to_input(torch.as_tensor(grey), 3)
    assert all(torch.equal(three[:, i : i + 1], to_input(torch.as_tensor(grey))) for i in range(3))


def test_a_colour_stream_warps_all_channels_alike() -> None:
    settings = {"name": "source", "batch_size": 4, "seed": 5, "augment": Augment()}
    same = np.repeat(IMAGES[..., None], 3, 3)
    colour = Stream(same, np.arange(10), channels=3, **settings)[0].images
    grey = Stream(IMAGES, np.arange(10), **settings)[0].images
    assert colour.shape == (4, 3, 12, 12)
    assert torch.allclose(colour, grey.expand(-1, 3, -1, -1), atol=1e-6)
