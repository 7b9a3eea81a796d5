"""A network is run for one look, and nothing of it has changed; one that is compiled stays reachable."""

import pytest
import torch
from torch import nn

from fastai_heads.modes import compile_in_place, evaluate, keep_buffers


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())


def test_modes_are_back_after_an_error_too(net):
    net[1].eval()
    before = [m.training for m in net.modules()]
    with pytest.raises(ZeroDivisionError), evaluate(net):
        assert not any(m.training for m in net.modules())
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == before


class Caches(nn.Module):
    "Caches its weight in evaluation, until it is told to train: as LeViT does its biases."

    def __init__(self):
        super().__init__()
        self.weight, self.cached = nn.Parameter(torch.ones(1)), None

    def train(self, mode=True):
        if mode:
            self.cached = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x * self.weight
        self.cached = self.weight.detach().clone() if self.cached is None else self.cached
        return x * self.cached


@pytest.mark.parametrize("training", [True, False])
def test_what_is_cached_in_evaluation_is_not_left(training):
    module = Caches().train(training)
    with evaluate(module):
        module(torch.ones(1))
    with torch.no_grad():
        module.weight.fill_(2)
    assert module.training is training and module(torch.ones(1)) == 2


def test_several_modules_are_evaluated_at_once_without_gradients(net):
    other = nn.Linear(4, 1)
    with evaluate(net, other):
        assert not net.training and not other.training and not other(torch.randn(2, 4)).requires_grad
    assert net.training and other.training and other(torch.randn(2, 4)).requires_grad


def test_buffers_are_what_and_where_they_were(net):
    kept, before = net[1].running_mean, net[1].running_mean.clone()
    with keep_buffers(net, torch.device("cpu")):
        net(torch.randn(8, 3, 2, 2))
        net[1].num_batches_tracked = torch.tensor(7)
        assert not torch.equal(net[1].running_mean, before)
    assert net[1].running_mean is kept and torch.equal(kept, before) and net[1].num_batches_tracked == 0


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: m], ids=["parallel", "plain"])
def test_a_compiled_network_is_the_network_itself(net, wrap):
    torch.compiler.reset()  # of other tests' networks, of which only so many are kept
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    keys, x = list(net.state_dict()), torch.randn(2, 3, 2, 2)
    with evaluate(net):
        expected = net(x)
    found = compile_in_place(wrap(torch.compile(net, backend=backend)))
    inner = getattr(found, "module", found)
    assert inner is net and inner[0] is net[0] and list(inner.state_dict()) == keys
    with evaluate(found):
        assert torch.equal(found(x), expected)
    assert not graphs, "not compiled for one look"
    torch.testing.assert_close(found.eval()(x), expected)
    assert graphs


def test_a_plain_network_stays_as_it_is(net):
    assert compile_in_place(net) is net and not getattr(net, "_compiled_call_impl", None)
