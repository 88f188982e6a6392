"""The weights that torchvision publishes: where they are, what they hash to, what they reach.

File names, accuracies and preprocessing: torchvision's documentation of its models,
https://docs.pytorch.org/vision/stable/models.html; a name ends with the first eight digits of the
file's SHA-256. Whole hashes stand where several public sources agree on them.
"""

import dataclasses
from collections.abc import Mapping

from jaxplain.preprocessing import Preprocessing

BASE = "https://download.pytorch.org/models/"

IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
IMAGENET_232 = dataclasses.replace(IMAGENET, resize=232)
# torchvision normalises with ImageNet's mean and deviation and then, in `transform_input`, undoes
# it: these weights come from TensorFlow, where pixels are brought to -1..1.
GOOGLE_224 = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize=256)
GOOGLE_299 = Preprocessing((299, 299), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize=342)


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights on a server.

    Attributes:
        name: what `weights=` calls it.
        url: where it is.
        sha256: its SHA-256, or the first eight digits.
        top1: its accuracy on ImageNet's validation set, percent.
        preprocessing: what pictures it expects.
    """

    name: str
    url: str
    sha256: str
    top1: float
    preprocessing: Preprocessing = IMAGENET

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]


def _torchvision(
    file: str,
    top1: float,
    preprocessing: Preprocessing = IMAGENET,
    *,
    name: str = "imagenet",
    sha256: str = "",
) -> Published:
    prefix = file.removesuffix(".pth").rsplit("-", 1)[-1]
    return Published(name, BASE + file, sha256 or prefix, top1, preprocessing)


PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "alexnet": (_torchvision("alexnet-owt-7be5be79.pth", 56.522),),
    "vgg11": (_torchvision("vgg11-8a719046.pth", 69.02),),
    "vgg13": (_torchvision("vgg13-19584684.pth", 69.928),),
    "vgg16": (
        _torchvision(
            "vgg16-397923af.pth",
            71.592,
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    ),
    "vgg19": (_torchvision("vgg19-dcbb9e9d.pth", 72.376),),
    "vgg11_bn": (_torchvision("vgg11_bn-6002323d.pth", 70.37),),
    "vgg13_bn": (_torchvision("vgg13_bn-abd245e5.pth", 71.586),),
    "vgg16_bn": (_torchvision("vgg16_bn-6c64b313.pth", 73.36),),
    "vgg19_bn": (_torchvision("vgg19_bn-c79401a0.pth", 74.218),),
    "googlenet": (_torchvision("googlenet-1378be20.pth", 69.778, GOOGLE_224),),
    "inception_v3": (_torchvision("inception_v3_google-0cc3c7bd.pth", 77.294, GOOGLE_299),),
    "resnet18": (
        _torchvision(
            "resnet18-f37072fd.pth",
            69.758,
            sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        ),
    ),
    "resnet34": (_torchvision("resnet34-b627a593.pth", 73.314),),
    "resnet50": (
        _torchvision(
            "resnet50-0676ba61.pth",
            76.13,
            sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        ),
        _torchvision("resnet50-11ad3fa6.pth", 80.858, IMAGENET_232, name="imagenet-v2"),
    ),
    "resnet101": (
        _torchvision("resnet101-63fe2227.pth", 77.374),
        _torchvision("resnet101-cd907fc2.pth", 81.886, IMAGENET_232, name="imagenet-v2"),
    ),
    "resnet152": (
        _torchvision("resnet152-394f9c45.pth", 78.312),
        _torchvision("resnet152-f82ba261.pth", 82.284, IMAGENET_232, name="imagenet-v2"),
    ),
}
