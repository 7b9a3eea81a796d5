"""What code touches of a network."""

import torch
from torch import nn

from fastai_heads.archs.touched import touched


class Asking(nn.Module):
    "Calls one module, reads a tensor of another, asks for a third, and leaves a fourth alone."

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(2, 2), nn.Linear(2, 2)
        self.asked, self.alone = nn.Linear(2, 2), nn.Linear(2, 2)
        self.listed = nn.ModuleList([nn.Linear(2, 2)])
        self.again = self.called
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count = self.count + self.asked.out_features
        for layer in self.listed:
            x = layer(x)
        return self.called(x) + self.read.weight.sum()


def test_what_is_called_read_and_asked_for():
    net = Asking()
    tables = [vars(m)[t] for m in net.modules() for t in ("_parameters", "_buffers", "_modules")]
    with touched(net) as seen:
        net(torch.zeros(1, 2))
    used = {path.partition(".")[0] for path in seen.used}
    assert used == {"called", "again", "read", "listed", "count"} and "read.weight" in seen.used
    assert seen.asked == {"called", "read", "asked", "listed"}
    assert [vars(m)[t] for m in net.modules() for t in ("_parameters", "_buffers", "_modules")] == tables
    assert all(type(vars(m)[t]) is dict for m in net.modules() for t in ("_parameters", "_buffers", "_modules"))
    assert net.count.item() == 2, "what was set inside stays"
    assert not net.called._forward_pre_hooks
