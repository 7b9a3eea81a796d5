"""A row per family of torchvision's classification networks. It holds the family's forward code as a list of steps."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.alexnet import AlexNet
from torchvision.models.convnext import ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet
from torchvision.models.googlenet import GoogLeNet
from torchvision.models.inception import Inception3
from torchvision.models.maxvit import MaxVit
from torchvision.models.mnasnet import MNASNet
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.mobilenetv3 import MobileNetV3
from torchvision.models.regnet import RegNet
from torchvision.models.resnet import ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.squeezenet import Fire, SqueezeNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vgg import VGG
from torchvision.models.vision_transformer import VisionTransformer

from fastai_heads.archs.family import Family
from fastai_heads.archs.records import FEATURES, PRE_LOGITS
from fastai_heads.archs.steps import Step, flatten, step

__all__ = ["TORCHVISION"]

POOL = (step("avgpool"), step(flatten, PRE_LOGITS))


def children(
    net: nn.Module,
    path: str,  # path of a sequence of modules that run in order
    tapped: Callable[[nn.Module], bool] = lambda m: True,  # tells which children are taps
) -> list[Step]:
    "Make a step per child of a sequence. A tap carries the path of its child."
    paths = ((f"{path}.{name}", m) for name, m in net.get_submodule(path).named_children())
    return [step(p, p) if tapped(m) else step(p) for p, m in paths]


def name_steps(paths: str) -> list[Step]:
    "Make a step per word. A word that ends in * is a tap of that name."
    return [step(p[:-1], p[:-1]) if p.endswith("*") else step(p) for p in paths.split()]


def to_features(steps: list[Step]) -> tuple[Step, ...]:
    "Mark the last step as the one that gives `features`."
    return (*steps[:-1], replace(steps[-1], taps=(*steps[-1].taps, FEATURES)))


def before_pool(net: nn.Module, path: str) -> list[Step]:
    "Make a step per child of a plain stack of layers. The end of each resolution is a tap, after its activation."
    steps = children(net, path, lambda m: False)
    modules = list(net.get_submodule(path))
    ends = {i - 1 for i, m in enumerate(modules) if isinstance(m, nn.MaxPool2d)}
    return [step(s.run, s.run) if i in ends else s for i, s in enumerate(steps)]


def mean_hw(net: nn.Module, x: Tensor) -> Tensor:
    "Pool as ShuffleNet and MNASNet do: `x.mean([2, 3])`."
    return x.mean([2, 3])


def pool_hw(net: nn.Module, x: Tensor) -> Tensor:
    "Pool as DenseNet and MobileNetV2 do: `adaptive_avg_pool2d(x, (1, 1))`."
    return F.adaptive_avg_pool2d(x, (1, 1))


def relu(net: nn.Module, x: Tensor) -> Tensor:
    "Apply DenseNet's last activation. It stands in the forward code and in no module."
    return F.relu(x, inplace=True)


def as_nchw(net: nn.Module, x: Tensor) -> Tensor:
    "Show a map that the network keeps as (B, H, W, C) to heads as (B, C, H, W)."
    return x.permute(0, 3, 1, 2)


def transform_input(net: nn.Module, x: Tensor) -> Tensor:
    """Change ImageNet's normalisation to that of GoogLeNet and Inception, which were trained with 0.5 and 0.5. One
    channel counts as three equal ones. Channels beyond three stay as they are."""
    if not net.transform_input:
        return x
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    scales, shifts = (0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5), (0.485, 0.456, 0.406)
    done = [x[:, i : i + 1] * a + (b - 0.5) / 0.5 for i, (a, b) in enumerate(zip(scales, shifts)) if i < x.shape[1]]
    return torch.cat((*done, x[:, 3:]), 1)


def tokens(net: VisionTransformer, x: Tensor) -> Tensor:
    "Make the patches and the class token, with their positions: (B, 1 + patches, C)."
    x = net._process_input(x)
    x = torch.cat([net.class_token.expand(x.shape[0], -1, -1), x], dim=1)
    return x + net.encoder.pos_embedding


def patches(net: VisionTransformer, x: Tensor) -> Tensor:
    "Show tokens to heads as a map (B, C, H, W), without the class token."
    side = net.image_size // net.patch_size
    return x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, side, side)


def class_token(net: VisionTransformer, x: Tensor) -> Tensor:
    "Take the token that the classifier of a ViT reads."
    return x[:, 0]


def conv_classifier(net: SqueezeNet, taps: dict[str, Tensor]) -> Tensor:
    "Apply SqueezeNet's classifier, which reads the map."
    return torch.flatten(net.classifier(taps[FEATURES]), 1)


def densenet_steps(net: DenseNet) -> tuple[Step, ...]:
    def tapped(m: nn.Module) -> bool:
        return isinstance(m, nn.ReLU | nn.ModuleDict)  # the stem's activation, and the dense blocks

    return (*children(net, "features", tapped), step(relu, FEATURES), step(pool_hw), step(flatten, PRE_LOGITS))


def convnext_steps(net: ConvNeXt) -> tuple[Step, ...]:
    stages = children(net, "features")
    stages = [step(s.run, *s.taps) if i % 2 else step(s.run) for i, s in enumerate(stages)]  # stem and downsampling
    return (*to_features(stages), step("avgpool"), step("classifier.0"), step("classifier.1", PRE_LOGITS))


def swin_steps(net: SwinTransformer) -> tuple[Step, ...]:
    stages = children(net, "features")
    seen = [step(s.run, *s.taps, seen=as_nchw) if i % 2 else step(s.run) for i, s in enumerate(stages)]
    return (*seen, step("norm"), step("permute", FEATURES), step("avgpool"), step("flatten", PRE_LOGITS))


def vit_steps(net: VisionTransformer) -> tuple[Step, ...]:
    layers = [step(s.run, *s.taps, seen=patches) for s in children(net, "encoder.layers")]
    head = [step(class_token), *(step(f"heads.{name}") for name, _ in net.heads.named_children() if name != "head")]
    return (
        step(tokens, uses=("conv_proj", "class_token", "encoder.pos_embedding")),
        step("encoder.dropout"),
        *layers,
        step("encoder.ln", FEATURES, seen=patches),
        *head[:-1],
        replace(head[-1], taps=(PRE_LOGITS,)),
    )


def mnasnet_taps(m: nn.Module) -> bool:
    return isinstance(m, nn.Sequential)  # the stacks of inverted residuals


ALEXNET = Family(
    name="alexnet",
    module=AlexNet,
    steps=lambda net: (*to_features(before_pool(net, "features")), step("avgpool"), step(flatten),
                       *name_steps("classifier.0 classifier.1 classifier.2 classifier.3 classifier.4"),
                       step("classifier.5", PRE_LOGITS)),
    classifier=("classifier.6",),
    late="features.6",
)  # fmt: skip
VGG_ = Family(
    name="vgg",
    module=VGG,
    steps=lambda net: (*to_features(before_pool(net, "features")), step("avgpool"), step(flatten),
                       *name_steps("classifier.0 classifier.1 classifier.2 classifier.3"),
                       step("classifier.4", PRE_LOGITS)),
    classifier=("classifier.6",),
    late="features.22",
)  # fmt: skip
RESNET = Family(
    name="resnet",
    module=ResNet,
    steps=(*name_steps("conv1 bn1"), step("relu", "stem"),
           *to_features(name_steps("maxpool layer1* layer2* layer3* layer4*")), *POOL),
    classifier=("fc",),
    late="layer3",
)  # fmt: skip
SQUEEZENET = Family(
    name="squeezenet",
    module=SqueezeNet,
    steps=lambda net: to_features(children(net, "features", lambda m: isinstance(m, nn.ReLU | Fire))),
    classifier=("classifier.1",),
    late="features.5",
    no_vector="its classifier is a convolution of the map with a ReLU before the pooling, so it reads no vector",
    logits=conv_classifier,
)
DENSENET = Family(
    name="densenet",
    module=DenseNet,
    steps=densenet_steps,
    classifier=("classifier",),
    late="features.transition2",
)
INCEPTION = Family(
    name="inception",
    module=Inception3,
    steps=(step(transform_input), *name_steps("Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3* maxpool1 Conv2d_3b_1x1 "
           "Conv2d_4a_3x3* maxpool2 Mixed_5b* Mixed_5c* Mixed_5d* Mixed_6a* Mixed_6b* Mixed_6c* Mixed_6d* Mixed_6e* "
           "Mixed_7a* Mixed_7b*"), step("Mixed_7c", "Mixed_7c", FEATURES), *POOL),
    classifier=("fc",),
    expands="transform_input",
)  # fmt: skip
GOOGLENET = Family(
    name="googlenet",
    module=GoogLeNet,
    steps=(step(transform_input), *name_steps("conv1* maxpool1 conv2 conv3* maxpool2 inception3a* inception3b* "
           "maxpool3 inception4a* inception4b* inception4c* inception4d* inception4e* maxpool4 inception5a*"),
           step("inception5b", "inception5b", FEATURES), *POOL),
    classifier=("fc",),
    expands="transform_input",
)  # fmt: skip
SHUFFLENET = Family(
    name="shufflenetv2",
    module=ShuffleNetV2,
    steps=(*to_features(name_steps("conv1* maxpool stage2* stage3* stage4* conv5*")), step(mean_hw, PRE_LOGITS)),
    classifier=("fc",),
)
MOBILENETV2 = Family(
    name="mobilenetv2",
    module=MobileNetV2,
    steps=lambda net: (*to_features(children(net, "features")), step(pool_hw), step(flatten, PRE_LOGITS)),
    classifier=("classifier.1",),
)
MOBILENETV3 = Family(
    name="mobilenetv3",
    module=MobileNetV3,
    steps=lambda net: (*to_features(children(net, "features")), step("avgpool"), step(flatten),
                       step("classifier.0"), step("classifier.1", PRE_LOGITS)),
    classifier=("classifier.3",),
)  # fmt: skip
MNASNET = Family(
    name="mnasnet",
    module=MNASNet,
    steps=lambda net: (*to_features(children(net, "layers", mnasnet_taps)), step(mean_hw, PRE_LOGITS)),
    classifier=("classifier.1",),
)
EFFICIENTNET = Family(
    name="efficientnet",
    module=EfficientNet,
    steps=lambda net: (*to_features(children(net, "features")), *POOL),
    classifier=("classifier.1",),
)
REGNET = Family(
    name="regnet",
    module=RegNet,
    steps=lambda net: (*name_steps("stem*"), *to_features(children(net, "trunk_output")), *POOL),
    classifier=("fc",),
)
CONVNEXT = Family(
    name="convnext",
    module=ConvNeXt,
    steps=convnext_steps,
    classifier=("classifier.2",),
)
VIT = Family(
    name="vision_transformer",
    module=VisionTransformer,
    steps=vit_steps,
    classifier=("heads.head",),
    fixed_size=lambda net: net.image_size,
)
SWIN = Family(
    name="swin_transformer",
    module=SwinTransformer,
    steps=swin_steps,
    classifier=("head",),
)
MAXVIT = Family(
    name="maxvit",
    module=MaxVit,
    steps=lambda net: (*name_steps("stem*"), *to_features(children(net, "blocks")),
                       *name_steps("classifier.0 classifier.1 classifier.2 classifier.3"),
                       step("classifier.4", PRE_LOGITS)),
    classifier=("classifier.5",),
    fixed_size=lambda net: 4 * net.blocks[0].grid_size[-1],
)  # fmt: skip

TORCHVISION: tuple[Family, ...] = (
    ALEXNET, VGG_, RESNET, SQUEEZENET, DENSENET, INCEPTION, GOOGLENET, SHUFFLENET, MOBILENETV2, MOBILENETV3,
    MNASNET, EFFICIENTNET, REGNET, CONVNEXT, VIT, SWIN, MAXVIT,
)  # fmt: skip
"All rows. A network's row is found by its class."
