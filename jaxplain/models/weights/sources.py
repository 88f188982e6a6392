"""From what a user gives as `weights` to the variables of a network.

That is the name of published weights ("imagenet"), "hf:organisation/name" on the Hugging Face hub,
the path of a file (`.pth` of torch, `.safetensors` with the names of torchvision, timm or this
package, `.mat` of MatConvNet), or a mapping: a state dict in memory, or variables. A network is
filled completely or not at all.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from jaxplain.models import imagenet
from jaxplain.models.architecture import Foreign
from jaxplain.models.network import Network
from jaxplain.models.weights import download, store
from jaxplain.models.weights.fill import fill, own_plan, torch_plan, variable_shapes
from jaxplain.models.weights.matconvnet import matconvnet_plan, read_matconvnet
from jaxplain.models.weights.published import PUBLISHED, Published
from jaxplain.models.weights.safetensors_file import read_safetensors
from jaxplain.models.weights.tensors import MemoryTensor, Tensors
from jaxplain.models.weights.torch_file import read_torch
from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
HUB = "hf:"


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads weights for one network, wherever they come from.

    Attributes:
        name: of the network, for messages.
        network: the network; its number of classes is replaced.
        published: what can be downloaded for it.
        progress: show a bar while downloading, if standard error is a terminal.
    """

    name: str
    network: Network
    published: tuple[Published, ...] = ()
    progress: bool = True

    def __call__(self, source: Any, num_classes: int) -> Foreign:
        """Return the variables, and the preprocessing and class names that belong to them.

        Args:
            source: name, path or mapping, as above.
            num_classes: width of the network's head.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: a download failed, or the cache cannot be written.
            TypeError: `source` is none of these.
            ValueError: the file is damaged or unsafe, or does not fit the network; everything that
                does not fit is listed.
        """
        network = self.network.clone(num_classes=num_classes)
        named = {file.name: file for file in self.published}
        if isinstance(source, Mapping):
            found = Foreign(_from_mapping(network, source))
        elif not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"weights are a {type(source).__name__}; expected a name, a path or a mapping"
            )
        elif isinstance(source, str) and source in named:
            found = self._from_cache(network, named[source])
        elif isinstance(source, str) and source.startswith(HUB):
            found = _from_hub(network, source)
        else:
            path = Path(source)
            if not path.exists() and not path.suffix:
                raise ValueError(f"{unknown('weights', str(source), named)}; there is no such file")
            found = _from_file(network, path)
        if found.class_names is None and num_classes == len(imagenet.class_names()):
            found = dataclasses.replace(found, class_names=imagenet.class_names())
        return found

    def _from_cache(self, network: Network, published: Published) -> Foreign:
        """Return published weights: from the cache, where they are put once, in our own format."""
        import filelock

        classes = len(imagenet.class_names())
        if network.num_classes != classes:
            raise ValueError(
                f"weights {published.name!r} of {self.name!r} are for {classes} classes, not "
                f"{network.num_classes}"
            )
        folder = download.cache_folder() / "weights"
        original = folder / published.file
        converted = original.with_suffix(".safetensors")
        if converted.exists():
            return _from_file(network, converted)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(original.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            if original.exists():  # put there by hand into a cache that cannot be written
                return _from_file(network, original)
            raise OSError(
                f"the cache {folder} cannot be written ({error.strerror or error}). Set "
                f"${download.CACHE_VARIABLE} to a folder that can, or download {published.url} and "
                f"pass its path as the weights."
            ) from error
        try:
            if converted.exists():  # another process was faster
                return _from_file(network, converted)
            placed = original.exists()
            if placed:
                digest = download.verify(original, published.sha256)
            else:
                digest = download.download(
                    published.url, original, sha256=published.sha256, progress=self.progress
                )
            variables = _from_torch(network, read_torch(original), str(original))
            about = store.Weights(
                variables,
                self.name,
                network.num_classes,
                published.preprocessing,
                recipe={"url": published.url, "sha256": digest},
                figures={"imagenet_top1": published.top1 / 100},
            )
            store.save(converted, about)
            if not placed:
                original.unlink()
            return Foreign(variables, published.preprocessing)
        finally:
            lock.release()


def _from_mapping(network: Network, source: Mapping[str, Any]) -> dict[str, Any]:
    """Fill from a state dict in memory, or from variables {"params": ...}."""
    shapes = variable_shapes(network)
    if "params" in source:
        source = traverse_util.flatten_dict(dict(source), sep="/")
        tensors = {name: MemoryTensor(np.asarray(values)) for name, values in source.items()}
        return fill(own_plan(shapes), shapes, tensors, source="the mapping")
    tensors = {
        str(name).removeprefix("module."): MemoryTensor(np.asarray(values))
        for name, values in source.items()
    }
    return _from_torch(network, tensors, "the mapping")


def _from_torch(network: Network, tensors: Tensors, source: str) -> dict[str, Any]:
    shapes = variable_shapes(network)
    plan = torch_plan(network, shapes, tensors)

    def ignored(name: str) -> bool:
        # torch counts batches; nothing that is computed here depends on it.
        return name.endswith("num_batches_tracked") or name.startswith(network.torch_only)

    return fill(plan, shapes, tensors, source=source, ignored=ignored)


def _from_file(network: Network, path: Path) -> Foreign:
    suffix = path.suffix.lower()
    if suffix == ".mat":
        tensors, preprocessing = read_matconvnet(path)
        shapes = variable_shapes(network)
        plan = matconvnet_plan(network, shapes)
        return Foreign(fill(plan, shapes, tensors, source=str(path)), preprocessing)
    if suffix == ".safetensors":
        return _from_safetensors(network, path)
    if suffix not in TORCH_SUFFIXES:
        known = ", ".join((*TORCH_SUFFIXES, ".safetensors", ".mat"))
        raise ValueError(f"{path} ends with {suffix!r}; known kinds of weights are {known}")
    published = {file.file: file for files in PUBLISHED.values() for file in files}.get(path.name)
    if published is not None:
        download.verify(path, published.sha256)
    variables = _from_torch(network, read_torch(path), str(path))
    return Foreign(variables, published.preprocessing if published else None)


def _from_safetensors(network: Network, path: Path) -> Foreign:
    tensors, metadata = read_safetensors(path)
    shapes = variable_shapes(network)
    if not any(name.startswith("params/") for name in tensors):
        return Foreign(_from_torch(network, tensors, str(path)))
    variables = fill(own_plan(shapes), shapes, tensors, source=str(path))
    preprocessing = metadata.get("preprocessing")
    names = json.loads(metadata.get("class_names", "[]"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} has class names that are not a list of names")
    return Foreign(
        variables,
        Preprocessing.from_json(preprocessing) if preprocessing else None,
        tuple(names) or None,
    )


def _from_hub(network: Network, reference: str) -> Foreign:
    """Fetch `model.safetensors` and `config.json` of "hf:organisation/name[@revision]"."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise ValueError(
            f"weights {reference!r} are fetched by huggingface_hub, which is not installed; try: "
            f"pip install huggingface_hub"
        ) from error
    repository, _, revision = reference.removeprefix(HUB).partition("@")
    path, config = (
        huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
        for file in ("model.safetensors", "config.json")
    )
    found = _from_safetensors(network, Path(path))
    settings = json.loads(Path(config).read_text("utf-8")).get("pretrained_cfg", {})
    return dataclasses.replace(found, preprocessing=_timm_preprocessing(settings))


def _timm_preprocessing(settings: Mapping[str, Any]) -> Preprocessing | None:
    """Read timm's `pretrained_cfg`: the picture is resized to size / crop_pct, rounded down."""
    if not {"input_size", "mean", "std"} <= set(settings):
        return None
    _, height, width = settings["input_size"]
    return Preprocessing(
        (height, width),
        tuple(settings["mean"]),
        tuple(settings["std"]),
        resize=math.floor(min(height, width) / settings.get("crop_pct", 0.875)),
        interpolation=settings.get("interpolation", "bicubic"),
    )
