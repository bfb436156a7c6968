from pathlib import Path

import numpy as np
import pytest
import torch

from support import pictures
from uotft.core.settings import Augment
from uotft.models.inputs import Views, crops, to_input
from uotft.training.distortions import _grid, crops_at_once, random_boxes
from uotft.training.streams import Place, Sampling, Stream

IMAGES = np.random.default_rng(0).integers(0, 255, (10, 12, 12), dtype=np.uint8)
STILL = Augment(rotation=0.0, shear=0.0, zoom=0.0, shift=0.0)


def stream(augment: Augment = Augment(), **changes) -> Stream:  # noqa: B008
    place = Place("cpu", changes.pop("rank", 0), changes.pop("world", 1))
    settings = {"name": "target", "batch_size": 4, "seed": 5, "augment": augment} | changes
    return Stream(IMAGES, np.arange(10), Sampling(**settings), place)


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


def test_a_grid_is_torchs() -> None:
    theta = torch.as_tensor(np.random.default_rng(0).normal(size=(7, 2, 3)), dtype=torch.float32)
    for shape in ((28, 28), (5, 9)):
        expected = torch.nn.functional.affine_grid(theta, [7, 1, *shape], align_corners=False)
        assert torch.allclose(_grid(theta, *shape), expected, atol=1e-6)


def test_contrast_keeps_the_mean_and_scales_the_rest() -> None:
    grey = np.random.default_rng(1).integers(100, 150, (10, 12, 12), dtype=np.uint8)
    made = []
    for augment in (STILL, STILL.model_copy(update={"contrast": 0.5})):
        made.append(Stream(grey, np.arange(10), Sampling("a", 4, 0, augment))[0])
    still, moved = (batch.images.flatten(1) for batch in made)
    assert torch.allclose(still.mean(1), moved.mean(1), atol=1e-5)
    factors = moved.std(1) / still.std(1)
    assert ((factors > 0.5) & (factors < 1.5)).all()
    assert factors.std() > 0.05, "each image has its own"


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
    colour = Stream(same, np.arange(10), Sampling(**settings, channels=3))[0].images
    grey = Stream(IMAGES, np.arange(10), Sampling(**settings))[0].images
    assert colour.shape == (4, 3, 12, 12)
    assert torch.allclose(colour, grey.expand(-1, 3, -1, -1), atol=1e-6)


# ---- of files: views of tests and random crops


def test_the_view_of_tests_is_resize_and_centre_crop(tmp_path: Path) -> None:
    """Beside torchvision's Resize(256), CenterCrop(224) of the same picture."""
    from torchvision.transforms import v2

    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    for size in ((500, 375), (375, 500), (480, 320), (300, 300)):
        images = pictures.scenes(tmp_path / str(size), 3, size)
        seen = Views(images, np.arange(3))
        assert seen.shape == (3, 224, 224, 3)
        for row, view in enumerate(seen[:]):
            expected = np.asarray(theirs(pictures.scene(row, size)), np.int64)
            assert np.abs(view - expected).mean() < 0.9, "of 255; a shift by one pixel is 1.5"
            assert np.abs(view - expected).max() <= 12


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (900, 100), (100, 900)])
def test_random_boxes_are_torchvisions_random_resized_crop(size: tuple[int, int]) -> None:
    from scipy.stats import ks_2samp
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    width, height = size
    crop, n = RandomResizedCrop(224), 3000
    drawn = [crop.make_params([torch.empty(3, height, width)]) for _ in range(n)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in drawn], float)
    sizes = np.tile([[height, width]], (n, 1))
    boxes = random_boxes(sizes, 0.08, np.random.default_rng(0))
    ours = np.rint(boxes * [height, width, height, width])  # theirs are of whole pixels
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-9
    measures = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "middle from the top": lambda b: b[:, 0] + b[:, 2] / 2,
        "middle from the left": lambda b: b[:, 1] + b[:, 3] / 2,
    }
    for name, measure in measures.items():
        assert ks_2samp(measure(ours), measure(theirs)).statistic < 0.05, name


def test_a_picture_too_long_for_any_box_gives_its_middle() -> None:
    sizes = np.array([[100, 1000], [1000, 100]])
    boxes = random_boxes(sizes, 1.0, np.random.default_rng(0)) * np.tile(sizes, 2)
    assert np.allclose(boxes, [[0, 1300 / 3, 100, 400 / 3], [1300 / 3, 0, 400 / 3, 100]])


PAPER = STILL.model_copy(update={"crop": 0.08, "flip": True})


def of_files(tmp_path: Path, augment: Augment = PAPER, **changes: object) -> Stream:
    images = pictures.scenes(tmp_path, 12, (60, 45), stored=48, size=32)
    place = Place("cpu", changes.pop("rank", 0), changes.pop("world", 1))
    settings = {"name": "source", "batch_size": 8, "seed": 3, "channels": 3, "augment": augment}
    origin = np.array([1, 3, 5, 7, 9, 11, 2, 4])
    sampling = Sampling(**settings | changes)
    return Stream(images.images, np.arange(8), sampling, place, origin=origin, files=images.files)


def test_without_a_crop_files_are_seen_as_in_tests(tmp_path: Path) -> None:
    still = of_files(tmp_path, STILL)
    images = pictures.scenes(tmp_path, 12, (60, 45), stored=48, size=32)
    expected = Views(images, still.origin[still.rows(2)])[:]
    assert still.held is None
    assert torch.equal(still[2].images, to_input(torch.as_tensor(expected), 3))
    grey = of_files(tmp_path, STILL, channels=1)[2].images
    assert torch.equal(grey, to_input(torch.as_tensor(expected), 1))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("augment", [PAPER, PAPER.model_copy(update={"operations": 2})])
def test_processes_share_the_crops_of_one(tmp_path: Path, augment: Augment, world: int) -> None:
    whole = of_files(tmp_path, augment)[3]
    shares = [of_files(tmp_path, augment, rank=r, world=world)[3] for r in range(world)]
    assert torch.equal(torch.cat([s.labels for s in shares]), whole.labels)
    assert torch.allclose(torch.cat([s.images for s in shares]), whole.images, atol=1e-6)


def test_crops_repeat_exactly_and_every_epoch_has_others(tmp_path: Path) -> None:
    stream = of_files(tmp_path)
    assert torch.equal(stream[0].images, of_files(tmp_path)[0].images)
    first, second = (stream[step] for step in (0, 1))
    assert sorted(first.labels.tolist()) == sorted(second.labels.tolist()) == [*range(8)]
    again = second.images[second.labels.argsort()]
    assert not torch.allclose(first.images[first.labels.argsort()], again, atol=0.1)


def test_every_second_image_is_flipped(tmp_path: Path) -> None:
    turned = 0
    for step in range(10):
        plain = of_files(tmp_path, STILL)[step].images
        flipped = of_files(tmp_path, STILL.model_copy(update={"flip": True}))[step].images
        for a, b in zip(plain, flipped, strict=True):
            assert torch.equal(a, b) or torch.equal(a.flip(2), b)
            turned += not torch.equal(a, b)
    assert 25 < turned < 55, "of 80"


def test_a_gpu_crops_as_the_cpu_does(tmp_path: Path) -> None:
    """All squares at once, as a GPU holds them, beside image by image; here both on the CPU."""
    squares = pictures.scenes(tmp_path, 3, stored=48).images[np.arange(3)]
    boxes = np.array([[4, 8, 20, 24], [0, 0, 48, 48], [28, 30, 20, 18]]) / 48  # whole pixels
    one_by_one = to_input(crops(squares, boxes, 60), 3)
    at_once = crops_at_once(to_input(torch.as_tensor(squares), 3), boxes, 60)
    # at its edge a box on the GPU sees the pixels around it
    inside = slice(None), slice(None), slice(2, -2), slice(2, -2)
    assert (at_once - one_by_one)[inside].abs().max() < 1.5 / 127.5


def test_a_stream_that_is_held_gives_the_same_batches(tmp_path: Path) -> None:
    stream = of_files(tmp_path)
    one_by_one = stream[1].images
    stream.held = torch.as_tensor(stream.images[stream.origin])
    at_once = stream[1].images
    assert at_once.shape == one_by_one.shape
    difference = (at_once - one_by_one).abs().mean((1, 2, 3))
    assert difference.max() < 0.1, "boxes of whole pixels against shares of them"
    assert difference.max() < (one_by_one - one_by_one.roll(1, 0)).abs().mean((1, 2, 3)).min() / 4
