"""Small networks as people write them, each in another style, and by hand what comes after their taps."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork


class LeNet(nn.Module):
    "Functional activations and pools, and three linear layers."

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 13 * 13, 32), nn.Linear(32, 24), nn.Linear(24, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Mnist(nn.Module):
    "PyTorch's own example: grey images of 28 pixels, functional pool, log-probabilities."

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, 1), nn.Conv2d(8, 12, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(12 * 12 * 12, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = torch.flatten(self.dropout1(x), 1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


class OnePool(nn.Module):
    "One pool and one activation for all, `view`, an odd size of the image."

    def __init__(self):
        super().__init__()
        self.pool, self.act = nn.MaxPool2d(2, 2), nn.ReLU(inplace=True)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.lin = nn.Linear(8 * 12 * 12, 4)

    def forward(self, x):
        x = self.pool(self.act(self.c1(x)))
        x = self.pool(self.act(self.c2(x)))
        return self.lin(x.view(-1, 8 * 12 * 12))


def flat_norm() -> nn.Sequential:
    "Flatten, linear, batch norm, activation, linear."
    convs = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        convs, nn.Flatten(), nn.Linear(8 * 8 * 8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


class Vgg(nn.Module):
    "A list of layers from a configuration, an adaptive pool of several cells, a classifier of several layers."

    def __init__(self):
        super().__init__()
        layers, n = [], 3
        for width in (8, "M", 12, "M"):
            layers += [nn.MaxPool2d(2)] if width == "M" else [nn.Conv2d(n, width, 3, padding=1), nn.ReLU(True)]
            n = n if width == "M" else width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Block(nn.Module):
    "A residual block with functional activations."

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    "The ResNet for CIFAR that many copies stem from."

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = nn.Sequential(Block(8, 8, 1)), nn.Sequential(Block(8, 16, 2))
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, out.shape[-1])
        return self.linear(out.view(out.size(0), -1))


class Dense(nn.Module):
    "Maps side by side, a functional activation after the last norm, and a mean."

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, 1, 1) for i in range(3))
        self.norm, self.classifier = nn.BatchNorm2d(20), nn.Linear(20, 6)

    def forward(self, x):
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(F.relu(torch.cat(maps, 1))))
        out = F.relu(self.norm(torch.cat(maps, 1)), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(out, (1, 1)).flatten(1))


def network_in_network() -> nn.Sequential:
    "A map for each class, averaged."
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class ClassToken(nn.Module):
    "A ViT with a class token and learned positions."

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 7)
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.cls_token, self.pos = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.encoder(x))[:, 0])


class SequenceFirst(nn.Module):
    "Tokens (N, B, C), averaged and then normalised."

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 7)

    def forward(self, x):
        x = self.encoder(self.patch(x).flatten(2).permute(2, 0, 1))
        return self.head(self.norm(x.mean(0)))


class Mixer(nn.Module):
    "Patches without a convolution, mixed by linear layers over tokens and over channels."

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 8, 12)
        self.tokens, self.channels = nn.Linear(16, 16), nn.Linear(12, 12)
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(F.unfold(x, 8, stride=8).transpose(1, 2))
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(x + self.channels(x))
        return self.fc(x.mean(1))


class ChannelsLast(nn.Module):
    "Maps (B, H, W, C) inside, as of Swin and ConvNeXt."

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
                                    for _ in range(2))  # fmt: skip
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x).mean((1, 2)))


def convs(width: int = 12) -> nn.Sequential:
    "Two convolutions, a stride of 4."
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), nn.ReLU()
    )


class TwoClassifiers(nn.Module):
    "A dictionary of two answers from one vector; the classifiers are registered first."

    def __init__(self):
        super().__init__()
        self.colour = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        self.shape = nn.Linear(12, 2)
        self.backbone = convs()

    def forward(self, x):
        x = self.backbone(x).mean((2, 3))
        return {"colour": self.colour(x), "shape": self.shape(x)}


class WithEmbedding(nn.Module):
    "A tuple of the logits and the vector that they are made of."

    def __init__(self):
        super().__init__()
        self.encoder, self.pool, self.fc = convs(), nn.AdaptiveAvgPool2d(1), nn.Linear(12, 4)

    def forward(self, x):
        h = self.pool(self.encoder(x)).squeeze(-1).squeeze(-1)
        return self.fc(h), h


class Auxiliary(nn.Module):
    "A branch whose result is dropped, another that runs in training only, and a layer that never runs."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.stem, self.trunk = convs(8), nn.Conv2d(8, 12, 3, 1, 1)
        self.dead, self.aux, self.idle = nn.Conv2d(12, 3, 1), nn.Linear(8, 4), nn.Linear(5, 5)

    def forward(self, x):
        x = self.stem(x)
        aux = self.aux(x.mean((2, 3))) if self.training else None
        x = torch.relu(self.trunk(x))
        self.dead(x)
        out = self.fc(x.mean((2, 3)))
        return (out, aux) if self.training else out


class Shared(nn.Module):
    "One block that runs three times."

    def __init__(self):
        super().__init__()
        self.stem, self.block = convs(), nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.fc(x.amax((2, 3)))


class ModelOutput(OrderedDict):
    "Answers by name, as attributes too, as transformers gives them."

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as e:
            raise AttributeError(name) from e


class Embeddings(nn.Module):
    "Patches, a class token and positions."

    def __init__(self):
        super().__init__()
        self.cls_token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.projection = nn.Conv2d(3, 16, 8, 8)

    def forward(self, pixel_values):
        x = self.projection(pixel_values).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.position


class Encoder(nn.Module):
    "Layers that give tuples; every hidden state is kept."

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))

    def forward(self, hidden_states):
        every = (hidden_states,)
        for layer in self.layer:
            hidden_states = layer(hidden_states)
            every = (*every, hidden_states)
        return ModelOutput(last_hidden_state=hidden_states, hidden_states=every)


class TransformersStyle(nn.Module):
    "A vision model in the style of transformers: keyword arguments, named answers."

    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(), Encoder()
        self.layernorm, self.classifier = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, pixel_values=None, labels=None):
        out = self.encoder(hidden_states=self.embeddings(pixel_values=pixel_values))
        logits = self.classifier(self.layernorm(out.last_hidden_state)[:, 0, :])
        return ModelOutput(logits=logits, hidden_states=out.hidden_states)


class Positions(nn.Module):
    "Its own `forward` never runs; a method of it is asked."

    def __init__(self):
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.randn(1, 12, 1, 1)), 0.5

    def values(self):
        return self.scale * self.table


class AskedByMethod(nn.Module):
    "One module is used by a method, of another an attribute only is read."

    def __init__(self):
        super().__init__()
        self.positions, self.settings = Positions(), nn.Linear(3, 2)
        self.convs, self.fc = convs(), nn.Linear(12, 4)

    def forward(self, x):
        x = self.convs(x) * self.settings.out_features + self.positions.values()
        return self.fc(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])


class Squeezed(nn.Module):
    "Squeeze and excitation: linear layers beside the way."

    def __init__(self):
        super().__init__()
        self.convs, self.last = convs(), nn.Conv2d(12, 12, 3, 1, 1)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.gap, self.dense = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 4)

    def forward(self, x):
        x = self.convs(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3)))))).unsqueeze(-1).unsqueeze(-1)
        return self.dense(self.gap(F.hardswish(self.last(x))).flatten(1))


class ZeroStart(nn.Module):
    "A classifier that starts with zeros, so that no image makes a difference."

    def __init__(self):
        super().__init__()
        self.body, self.out = convs(), nn.Linear(12, 4)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        return torch.sigmoid(self.out(self.body(x).mean(dim=(-2, -1))))


class Cosine(nn.Module):
    "A classifier with weights of its own and no bias."

    def __init__(self, n_in, n_out):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(n_out, n_in))

    def forward(self, x):
        return 16 * F.normalize(x) @ F.normalize(self.prototypes).T


class FaceNet(nn.Module):
    "An embedding and a cosine classifier."

    def __init__(self):
        super().__init__()
        self.net, self.bottleneck, self.norm = convs(), nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8)
        self.arc = Cosine(8, 5)

    def forward(self, x):
        return self.arc(self.norm(self.bottleneck(self.net(x).flatten(2).mean(2))))


class Attentive(nn.Module):
    "Attention pools the map."

    def __init__(self):
        super().__init__()
        self.cnn, self.attend, self.to_logits = convs(), nn.Conv2d(12, 1, 1), nn.Linear(12, 4)

    def forward(self, x):
        x = self.cnn(x)
        weights = self.attend(x).flatten(1).softmax(1)
        return self.to_logits(torch.einsum("bcn,bn->bc", x.flatten(2), weights))


class TwoStreams(nn.Module):
    "Two branches, joined as maps."

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = convs(), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3, 2, 1))
        self.fuse, self.cls = nn.Conv2d(16, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.fuse(torch.cat([self.fine(x), self.coarse(x)], dim=1))
        return self.cls(x.max(3).values.max(2).values)


def headless() -> nn.Sequential:
    "A backbone that gives its vector."
    return nn.Sequential(convs(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Regions(nn.Module):
    "A detector's backbone: a pyramid over a residual network, and one level more."

    def __init__(self):
        super().__init__()
        net = resnet18()
        self.body = IntermediateLayerGetter(net, {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)})
        self.fpn = FeaturePyramidNetwork([64, 128, 256, 512], 16)

    def forward(self, x):
        maps = self.fpn(self.body(x))
        maps["pool"] = F.max_pool2d(maps["3"], 1, 2)
        return maps


@dataclass(frozen=True)
class Written:
    "A network, and by hand what it does after its taps."

    make: Callable[[], nn.Module]
    channels: int  # of its last map
    stride: int
    vector: Callable[[nn.Module, Tensor], Tensor] | None  # of (net, features); None: the map does not hold all of it
    answer: Callable[[nn.Module, Tensor], object]  # of (net, pre_logits)
    side: int = 32  # of the image
    n_in: int = 3


def mean(net: nn.Module, x: Tensor) -> Tensor:
    "The mean over the cells."
    return x.mean((2, 3))


def by_cell(x: Tensor) -> Tensor:
    "A map as tokens."
    return x.flatten(2).transpose(1, 2).contiguous()


def tokens_first(x: Tensor) -> Tensor:
    "A map as tokens (N, B, C)."
    return by_cell(x).transpose(0, 1).contiguous()


WRITTEN: dict[str, Written] = {
    "lenet": Written(LeNet, 16, 4, lambda n, m: F.relu(n.fc2(F.relu(n.fc1(m.flatten(1))))), lambda n, v: n.fc3(v), 64),
    "mnist": Written(Mnist, 12, 2, lambda n, m: F.relu(n.fc1(m.flatten(1))),
                     lambda n, v: F.log_softmax(n.fc2(v), 1), 28, 1),
    "one_pool": Written(OnePool, 8, 4, lambda n, m: m.flatten(1), lambda n, v: n.lin(v), 50),
    "flat_norm": Written(flat_norm, 8, 4, lambda n, m: n[1:6](m), lambda n, v: n[6](v)),
    "vgg": Written(Vgg, 12, 4, lambda n, m: n.classifier[:3](n.avgpool(m).flatten(1)), lambda n, v: n.classifier[3](v)),
    "cifar_resnet": Written(CifarResNet, 16, 2, lambda n, m: F.avg_pool2d(m, 16).flatten(1), lambda n, v: n.linear(v)),
    "dense": Written(Dense, 20, 2, lambda n, m: F.adaptive_avg_pool2d(F.relu(m), 1).flatten(1),
                     lambda n, v: n.classifier(v)),
    "class_token": Written(ClassToken, 16, 8, None, lambda n, v: n.head(v)),
    "sequence_first": Written(SequenceFirst, 16, 8, lambda n, m: n.norm(tokens_first(m).mean(0)),
                              lambda n, v: n.head(v)),
    "mixer": Written(Mixer, 12, 8, lambda n, m: by_cell(m).mean(1), lambda n, v: n.fc(v)),
    "channels_last": Written(ChannelsLast, 12, 4, lambda n, m: m.permute(0, 2, 3, 1).contiguous().mean((1, 2)),
                             lambda n, v: n.head(v)),
    "two_classifiers": Written(TwoClassifiers, 12, 4, mean, lambda n, v: {"colour": n.colour(v), "shape": n.shape(v)}),
    "with_embedding": Written(WithEmbedding, 12, 4, lambda n, m: n.pool(m).flatten(1), lambda n, v: (n.fc(v), v)),
    "auxiliary": Written(Auxiliary, 12, 4, mean, lambda n, v: n.fc(v)),
    "shared": Written(Shared, 12, 4, None, lambda n, v: n.fc(v)),
    "transformers": Written(TransformersStyle, 16, 8, None, lambda n, v: n.classifier(v)),
    "asked_by_method": Written(AskedByMethod, 12, 4, None, lambda n, v: n.fc(v)),
    "squeezed": Written(Squeezed, 12, 4, lambda n, m: n.gap(m).flatten(1), lambda n, v: n.dense(v)),
    "zero_start": Written(ZeroStart, 12, 4, mean, lambda n, v: torch.sigmoid(n.out(v))),
    "face_net": Written(FaceNet, 12, 4, lambda n, m: n.norm(n.bottleneck(m.flatten(2).mean(2))),
                        lambda n, v: n.arc(v)),
    "attentive": Written(Attentive, 12, 4, None, lambda n, v: n.to_logits(v)),
    "two_streams": Written(TwoStreams, 8, 4, lambda n, m: m.max(3).values.max(2).values, lambda n, v: n.cls(v)),
    "headless": Written(headless, 12, 4, lambda n, m: n[1:](m), lambda n, v: v),
}  # fmt: skip
"By name; those whose answer comes of a vector."
