"""From what a user gives as `weights` to the variables of a network.

That is the name of published weights ("imagenet"), "hf:organisation/name" on the Hugging Face hub,
the path of a file (`.pth` of torch, `.safetensors` with the names of torchvision, timm or this
package, `.mat` of MatConvNet), or a mapping: a state dict in memory, or variables. A network is
filled completely or not at all.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
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
from jaxplain.models.weights.tensors import MemoryTensor, Tensors
from jaxplain.models.weights.torch_file import read_torch
from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
HUB = "hf:"
HUB_FILE = "model.safetensors"
# timm's names of ways to cut out a square -> whether they keep the proportions of a picture.
CROP_MODES = {"center": True, "squash": False}


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

    def __call__(self, source: Any, num_classes: int | None) -> Foreign:
        """Return the variables, and the preprocessing and class names that belong to them.

        Args:
            source: name, path or mapping, as above.
            num_classes: width of the network's head; None for that of the weights.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: a download failed, or the cache cannot be written.
            TypeError: `source` is none of these.
            ValueError: the file is damaged or unsafe, is of another network or another number of
                classes, or does not fit the network; everything that does not fit is listed.
        """
        named = {file.name: file for file in self.published}
        if isinstance(source, Mapping):
            found = self._from_mapping(source, num_classes)
        elif not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"weights are a {type(source).__name__}; expected a name, a path or a mapping"
            )
        elif isinstance(source, str) and source in named:
            found = self._from_cache(named[source], num_classes)
        elif isinstance(source, str) and source.startswith(HUB):
            found = self._from_hub(source, num_classes)
        else:
            path = Path(source)
            if not path.exists() and not path.suffix:
                raise ValueError(f"{unknown('weights', str(source), named)}; there is no such file")
            found = self._from_file(path, num_classes)
        if found.class_names is None and found.num_classes == len(imagenet.class_names()):
            found = dataclasses.replace(found, class_names=imagenet.class_names())
        return found

    def _from_cache(self, published: Published, num_classes: int | None) -> Foreign:
        """Return published weights: from the cache, where they are put once, in our own format."""
        import filelock

        of = f"{published.name!r} of {self.name!r}"
        classes = store.agreed_classes(num_classes, len(imagenet.class_names()), of)
        folder = download.cache_folder() / "weights"
        original = folder / published.file
        converted = original.with_suffix(".safetensors")
        if converted.exists():
            return self._from_file(converted, classes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(original.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            if original.exists():  # put there by hand into a cache that cannot be written
                return self._from_file(original, classes)
            raise OSError(
                f"the cache {folder} cannot be written ({error.strerror or error}). Set "
                f"${download.CACHE_VARIABLE} to a folder that can, or download {published.url} and "
                f"pass its path as the weights."
            ) from error
        try:
            if converted.exists():  # another process was faster
                return self._from_file(converted, classes)
            placed = original.exists()
            if placed:
                digest = download.verify(original, published.sha256)
            else:
                digest = download.download(
                    published.url, original, sha256=published.sha256, progress=self.progress
                )
            found = self._from_torch(read_torch(original), classes, str(original))
            about = store.Weights(
                found.variables,
                self.name,
                len(imagenet.class_names()),
                published.preprocessing,
                recipe={"url": published.url, "sha256": digest},
                figures={"imagenet_top1": published.top1 / 100},
            )
            store.save(converted, about)
            if not placed:
                original.unlink()
            return dataclasses.replace(found, preprocessing=published.preprocessing)
        finally:
            lock.release()

    def _from_mapping(self, source: Mapping[str, Any], num_classes: int | None) -> Foreign:
        """Fill from a state dict in memory, or from variables {"params": ...}."""
        if "params" in source:
            flat = traverse_util.flatten_dict(dict(source), sep="/")
            tensors = {name: MemoryTensor(np.asarray(values)) for name, values in flat.items()}
            return self._from_own(tensors, num_classes, "the mapping")
        tensors = {
            str(name).removeprefix("module."): MemoryTensor(np.asarray(values))
            for name, values in source.items()
        }
        return self._from_torch(tensors, num_classes, "the mapping")

    def _from_own(self, tensors: Tensors, num_classes: int | None, source: str) -> Foreign:
        """Fill from tensors with our names."""
        head = f"params/{self.network.head}/kernel"
        found = tensors[head].shape[-1] if head in tensors and tensors[head].shape else None
        network = self._network(num_classes, found, f"{source} ({head})")
        shapes = variable_shapes(network)
        variables = fill(own_plan(shapes), shapes, tensors, source=source)
        return Foreign(variables, num_classes=network.num_classes)

    def _from_torch(self, tensors: Tensors, num_classes: int | None, source: str) -> Foreign:
        """Fill from a state dict of torchvision or timm."""
        shapes = variable_shapes(self.network)
        head = torch_plan(self.network, shapes, tensors)["params", self.network.head, "kernel"].name
        found = tensors[head].shape[0] if head in tensors and tensors[head].shape else None
        network = self._network(num_classes, found, f"{source} ({head})")

        def ignored(name: str) -> bool:
            # torch counts batches; nothing that is computed here depends on it.
            return name.endswith("num_batches_tracked") or name.startswith(network.torch_only)

        shapes = variable_shapes(network)
        plan = torch_plan(network, shapes, tensors)
        variables = fill(plan, shapes, tensors, source=source, ignored=ignored)
        return Foreign(variables, num_classes=network.num_classes)

    def _network(self, asked: int | None, found: int | None, source: str) -> Network:
        """The network with as many classes as weights have."""
        if found is not None and found < 1:
            raise ValueError(f"{source} has no classes")
        classes = store.agreed_classes(asked, found, source)
        return self.network.clone(num_classes=classes or self.network.num_classes)

    def _from_file(self, path: Path, num_classes: int | None) -> Foreign:
        suffix = path.suffix.lower()
        if suffix == ".mat":
            return self._from_matconvnet(path, num_classes)
        if suffix == ".safetensors":
            return self._from_safetensors(path, num_classes)
        if suffix not in TORCH_SUFFIXES:
            known = ", ".join((*TORCH_SUFFIXES, ".safetensors", ".mat"))
            raise ValueError(f"{path} ends with {suffix!r}; known kinds of weights are {known}")
        known = {file.file: file for files in PUBLISHED.values() for file in files}
        published = known.get(path.name)
        if published is not None:
            download.verify(path, published.sha256)
        found = self._from_torch(read_torch(path), num_classes, str(path))
        preprocessing = published.preprocessing if published else None
        return dataclasses.replace(found, preprocessing=preprocessing)

    def _from_matconvnet(self, path: Path, num_classes: int | None) -> Foreign:
        tensors, preprocessing = read_matconvnet(path)
        head = matconvnet_plan(self.network, variable_shapes(self.network))[
            "params", self.network.head, "kernel"
        ].name
        found = tensors[head].shape[-1] if head in tensors and tensors[head].shape else None
        network = self._network(num_classes, found, f"{path} ({head})")
        shapes = variable_shapes(network)
        variables = fill(matconvnet_plan(network, shapes), shapes, tensors, source=str(path))
        return Foreign(variables, preprocessing, num_classes=network.num_classes)

    def _from_safetensors(self, path: Path, num_classes: int | None) -> Foreign:
        tensors, header = store.read(path)
        if not any(name.startswith("params/") for name in tensors):
            return self._from_torch(tensors, num_classes, str(path))
        store.check_architecture(header, self.name, str(path))
        found = self._from_own(tensors, num_classes, str(path))
        store.check_class_names(header.class_names, found.num_classes or 0, str(path))
        return dataclasses.replace(
            found,
            preprocessing=header.preprocessing,
            class_names=header.class_names or None,
            multilabel=header.multilabel,
        )

    def _from_hub(self, reference: str, num_classes: int | None) -> Foreign:
        """Read `model.safetensors`, and timm's `config.json`, of "hf:owner/name[@revision]"."""
        path = _fetch(reference, HUB_FILE)
        if path is None:
            raise FileNotFoundError(f"weights {reference!r}: the repository has no {HUB_FILE}")
        found = self._from_safetensors(path, num_classes)
        if found.preprocessing is not None:  # it is a file of ours
            return found
        config = _fetch(reference, "config.json")
        if config is None:
            return found
        try:
            settings = json.loads(config.read_text("utf-8")).get("pretrained_cfg", {})
            return dataclasses.replace(found, preprocessing=_timm_preprocessing(settings))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"config.json of {reference!r} is not one of timm's that can be followed: {error}"
            ) from error


def _fetch(reference: str, file: str) -> Path | None:
    """Return where a file of "hf:owner/name[@revision]" lies when fetched; None if it has none.

    Raises:
        OSError: there is no such repository or revision, or the hub cannot be reached.
        ValueError: the hub's library is not installed, or this is no name of a repository.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ValueError(
            f"weights {reference!r} are fetched by huggingface_hub, which is not installed; try: "
            f"pip install huggingface_hub"
        ) from error
    repository, _, revision = reference.removeprefix(HUB).partition("@")
    try:
        with _quiet_hub():
            found = huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
        return Path(found)
    except errors.LocalEntryNotFoundError as error:
        known = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if known is not None and not isinstance(known, str):  # it was asked for, and is not there
            return None
        raise OSError(
            f"cannot fetch {file} of {reference!r}: the hub cannot be reached, and it has not been "
            f"fetched before; download it elsewhere and pass its path as the weights"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except OSError as error:
        reason = next((line for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise OSError(f"cannot fetch {file} of {reference!r}: {reason}") from error


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's library from reporting each of its attempts: an error says it all."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _timm_preprocessing(settings: Mapping[str, Any]) -> Preprocessing | None:
    """Read timm's `pretrained_cfg`; None if it says nothing of pictures.

    The picture is resized to size / crop_pct, rounded down, and its centre is cut out
    (`transforms_imagenet_eval` of https://github.com/huggingface/pytorch-image-models). `crop_mode`
    is "center", which keeps the proportions; "squash", which does not; or "border", which puts
    frames around pictures and is refused: what a map says of those has no place in the picture.

    Raises:
        ValueError: a setting with which pictures would be prepared otherwise than timm does.
    """
    if not {"input_size", "mean", "std"} <= set(settings):
        return None
    _, height, width = settings["input_size"]
    mode = settings.get("crop_mode") or "center"
    if mode not in CROP_MODES:
        raise ValueError(f"its crop_mode is {mode!r}; supported are {', '.join(CROP_MODES)}")
    if height != width:
        raise ValueError(f"its input_size is {height} x {width}; supported are squares")
    return Preprocessing(
        (height, width),
        tuple(settings["mean"]),
        tuple(settings["std"]),
        resize=math.floor(height / (settings.get("crop_pct") or 0.875)),
        interpolation=settings.get("interpolation", "bicubic"),
        keep_aspect=CROP_MODES[mode],
    )
