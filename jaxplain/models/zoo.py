"""The table of networks for photographs: VGG, AlexNet, VGG-F, GoogLeNet, Inception-V3, ResNet."""

from jaxplain.models import imagenet
from jaxplain.models.alexnet import VGGF, AlexNet
from jaxplain.models.architecture import Architecture
from jaxplain.models.inception import GoogLeNet, InceptionV3
from jaxplain.models.network import Network
from jaxplain.models.resnet import ResNet
from jaxplain.models.vgg import CONVOLUTIONS, VGG
from jaxplain.models.weights.published import IMAGENET, PUBLISHED
from jaxplain.models.weights.sources import Loader
from jaxplain.preprocessing import Preprocessing

# Mean colour of `imagenet-vgg-f.mat`, whose pictures are not divided by a deviation.
VGG_F = Preprocessing(
    (224, 224),
    (122.8033 / 255, 114.8853 / 255, 101.5721 / 255),
    (1.0, 1.0, 1.0),
    resize=256,
    interpolation="bicubic",
    scale=255.0,
)


def _architecture(
    name: str,
    description: str,
    network: Network,
    *,
    default_layer: str,
    evidence_layer: str,
    preprocessing: Preprocessing | None = None,
) -> Architecture:
    published = PUBLISHED.get(name, ())
    return Architecture(
        name=name,
        description=description,
        build=lambda num_classes: network.clone(num_classes=num_classes),
        num_classes=network.num_classes,
        preprocessing=preprocessing or (published[0].preprocessing if published else IMAGENET),
        default_layer=default_layer,
        evidence_layer=evidence_layer,
        weights={file.name: file.file for file in published},
        class_names=imagenet.class_names(),
        foreign=Loader(name, network, published),
    )


def _vgg(depth: int, batch_norm: bool) -> Architecture:
    suffix = "_bn" if batch_norm else ""
    return _architecture(
        f"vgg{depth}{suffix}",
        f"VGG, {depth} layers{' with batch norm' if batch_norm else ''}",
        VGG(depth=depth, batch_norm=batch_norm),
        default_layer=f"conv5_{CONVOLUTIONS[depth][-1]}",
        evidence_layer="pool4",
    )


def _resnet(depth: int) -> Architecture:
    return _architecture(
        f"resnet{depth}",
        f"ResNet, {depth} layers",
        ResNet(depth=depth),
        default_layer="layer4",
        evidence_layer="layer3",
    )


ARCHITECTURES = (
    _architecture(
        "alexnet",
        "AlexNet, torchvision's single tower",
        AlexNet(),
        default_layer="conv5",
        evidence_layer="pool2",
    ),
    _architecture(
        "vgg_f",
        "VGG-F (CNN-F), MatConvNet's; weights from its imagenet-vgg-f.mat",
        VGGF(),
        default_layer="conv5",
        evidence_layer="pool2",
        preprocessing=VGG_F,
    ),
    *(_vgg(depth, batch_norm) for batch_norm in (False, True) for depth in CONVOLUTIONS),
    _architecture(
        "googlenet",
        "GoogLeNet (Inception-V1) with batch norm",
        GoogLeNet(),
        default_layer="inception5b",
        evidence_layer="maxpool2",
    ),
    _architecture(
        "inception_v3",
        "Inception-V3, 299 x 299 pixels",
        InceptionV3(),
        default_layer="Mixed_7c",
        evidence_layer="maxpool2",
    ),
    *(_resnet(depth) for depth in (18, 34, 50, 101, 152)),
)
