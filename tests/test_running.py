"""A network is run for one look, and nothing of it has changed; one that is compiled stays reachable."""

import pytest
import torch
from torch import nn

from fastai_heads.running import compiled_in_place, evaluating, in_eval, unchanged


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())


def test_modes_are_back_after_an_error_too(net):
    net[1].eval()
    before = [m.training for m in net.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(m.training for m in net.modules())
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == before


def test_buffers_are_what_and_where_they_were(net):
    kept, before = net[1].running_mean, net[1].running_mean.clone()
    with unchanged(net, torch.device("cpu")):
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
    expected = in_eval(net, x)
    found = compiled_in_place(wrap(torch.compile(net, backend=backend)))
    inner = getattr(found, "module", found)
    assert inner is net and inner[0] is net[0] and list(inner.state_dict()) == keys
    torch.testing.assert_close(in_eval(found, x), expected)
    assert not graphs, "not compiled for one look"
    with evaluating(found):
        torch.testing.assert_close(found(x), expected)
    assert graphs


def test_a_plain_network_stays_as_it_is(net):
    assert compiled_in_place(net) is net and not getattr(net, "_compiled_call_impl", None)
