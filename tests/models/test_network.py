import copy

import numpy as np
import pytest
import torch

from uotft.models.backbones import small_resnet
from uotft.models.network import Network, nearest_mean_rows, random_rows, separate_norms

ROUTES = {"target": ("target", "target"), "source": ("source", "source")}
HALVES, SIXES = {"target": 3, "source": 3}, {"target": 6, "source": 6}


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(small_resnet.build(small_resnet.Settings(widths=[4, 8])), target=3, source=5)


def statistics(network: Network) -> torch.Tensor:
    buffers = [b.double() for name, b in network.named_buffers() if "running" in name]
    return torch.cat(buffers)


def test_each_head_sees_its_own_part(network: Network) -> None:
    outputs = network.eval()(torch.randn(7, 1, 16, 16), {"target": 4, "source": 3}, ROUTES)
    assert outputs["target"].shape == (4, 3)
    assert outputs["source"].shape == (3, 5)


def test_a_route_takes_any_part_to_any_head(network: Network) -> None:
    images = torch.randn(9, 1, 16, 16)
    alone = network.eval()(images)["target"]
    routes = {"weak": ("source", "target"), "strong": ("strong", "target")}
    routes |= {"target": ("target", "target"), "classifier": ("target", "source")}
    sizes = {"target": 4, "source": 3, "strong": 2}
    outputs = network(images, sizes, routes)
    assert outputs["classifier"].shape == (4, 5)
    parts = torch.cat([outputs[name] for name in ("target", "weak", "strong")])
    assert torch.allclose(parts, alone, atol=1e-6)


def test_the_source_loss_leaves_the_target_head_alone(network: Network) -> None:
    network.train()(torch.randn(6, 1, 16, 16), HALVES, ROUTES)["source"].sum().backward()
    assert network.head("target").weight.grad is None
    assert network.head("source").weight.grad is not None


def test_target_norms_forget_the_source(network: Network) -> None:
    alone = copy.deepcopy(network)
    separate_norms(network)
    separate_norms(alone)
    target, source = torch.randn(6, 1, 16, 16), 5 + 3 * torch.randn(6, 1, 16, 16)
    joint = network.train()(torch.cat([target, source]), SIXES, ROUTES)["target"]
    assert torch.allclose(joint, alone.train()(target)["target"], atol=1e-5)
    assert torch.allclose(statistics(network), statistics(alone), atol=1e-6)


def test_mixed_norms_remember_both(network: Network) -> None:
    alone = copy.deepcopy(network)
    target, source = torch.randn(6, 1, 16, 16), 5 + 3 * torch.randn(6, 1, 16, 16)
    network.train()(torch.cat([target, source]), SIXES, ROUTES)
    alone.train()(target)
    assert not torch.allclose(statistics(network), statistics(alone), atol=1e-2)


def test_separate_norms_change_nothing_at_test_time(network: Network) -> None:
    images = torch.randn(4, 1, 16, 16)
    before = network.eval()(images)["target"]
    separate_norms(network)
    assert torch.equal(network.eval()(images)["target"], before)


def test_random_heads_are_the_papers() -> None:
    """N(0, sqrt(2 / 2048)) and no bias; the seed and the head decide."""
    shape = torch.Size([1000, 512])
    weight, bias = random_rows("target", shape, 0)
    assert float(weight.std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)
    assert not bias.any()
    assert torch.equal(weight, random_rows("target", shape, 0)[0])
    for other in (("source", shape, 0), ("target", shape, 1)):
        assert abs(np.corrcoef(weight.flatten(), random_rows(*other)[0].flatten())[0, 1]) < 0.01


def test_a_nearest_mean_head_of_one_class_is_finite() -> None:
    weight, bias = nearest_mean_rows(torch.rand(1, 9), scale=10.0)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_nearest_mean_head_ranks_by_distance() -> None:
    torch.manual_seed(0)
    means, features = torch.rand(5, 9), torch.rand(50, 9)
    weight, bias = nearest_mean_rows(means, scale=3.0)
    nearest = torch.cdist(features, means).argmin(1)
    assert torch.equal((features @ weight.T + bias).argmax(1), nearest)
