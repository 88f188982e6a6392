"""Weights from every place that a user can name."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from file_server import serve
from matconvnet_writer import write_matconvnet
from safetensors.numpy import save_file
from tiny_network import Plain, Tiny, state_dict
from torch_writer import write_state_dict

from jaxplain.models import imagenet
from jaxplain.models.weights import store
from jaxplain.models.weights.published import GOOGLE_299, IMAGENET, PUBLISHED, Published
from jaxplain.models.weights.safetensors_file import read_safetensors
from jaxplain.models.weights.sources import Loader
from jaxplain.preprocessing import Preprocessing

TINY = Loader("tiny", Tiny())
GREY = Preprocessing((4, 5), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), order="BGR")


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.fixture
def expected():
    return TINY(state_dict(), 4).variables


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH", ".bin"])
def test_files_of_torch(tmp_path, expected, legacy, suffix):
    path = write_state_dict(tmp_path / f"a{suffix}", state_dict(), legacy=legacy)
    assert same(TINY(path, 4).variables, expected)
    assert same(TINY(str(path), 4).variables, expected)


def test_safetensors_with_torchs_names(tmp_path, expected):
    save_file(state_dict(), tmp_path / "a.safetensors")
    assert same(TINY(tmp_path / "a.safetensors", 4).variables, expected)


def test_our_own_file_brings_preprocessing_and_names(tmp_path, expected):
    names = ("a", "b", "c", "<d>")
    weights = store.Weights(expected, "tiny", 4, GREY, names)
    store.save(tmp_path / "a.safetensors", weights)
    found = TINY(tmp_path / "a.safetensors", 4)
    assert same(found.variables, expected)
    assert found.preprocessing == GREY
    assert found.class_names == names


def test_matconvnets_file_brings_its_mean(tmp_path):
    filters, _ = write_matconvnet(tmp_path / "a.mat")
    found = Loader("plain", Plain())(tmp_path / "a.mat", 4)
    np.testing.assert_array_equal(found.variables["params"]["conv1"]["kernel"], filters["conv1"])
    assert found.preprocessing is not None
    assert found.preprocessing.scale == 255


def test_mappings_of_either_naming(expected):
    prefixed = {f"module.{name}": values for name, values in state_dict().items()}
    assert same(TINY(prefixed, 4).variables, expected)
    assert same(TINY(expected, 4).variables, expected)


def test_a_thousand_classes_are_those_of_imagenet():
    tensors = state_dict() | {
        "classifier.weight": np.zeros((1000, 6), np.float32),
        "classifier.bias": np.zeros(1000, np.float32),
    }
    assert TINY(tensors, 1000).class_names == imagenet.class_names()
    assert TINY(state_dict(), 4).class_names is None


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("imagnet", ValueError, "unknown weights 'imagnet'; nearest: imagenet; there is no such"),
        ("missing.pth", FileNotFoundError, r"missing\.pth"),
        ("missing.safetensors", FileNotFoundError, r"missing\.safetensors"),
        ("missing.mat", FileNotFoundError, r"missing\.mat"),
        ("weights.h5", ValueError, r"ends with '\.h5'; known kinds of weights are \.pth, "),
        (3, TypeError, "weights are a int; expected a name, a path or a mapping"),
        ({}, ValueError, "the mapping does not fit the network: 10 missing: "),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(source, error, message):
    loader = Loader("tiny", Tiny(), (Published("imagenet", "http://x/tiny-1.pth", "", 50.0),))
    with pytest.raises(error, match=message):
        loader(source, 4)


@pytest.mark.parametrize("kind", ["pth", "torch.safetensors", "own.safetensors", "mapping"])
def test_the_head_tells_the_number_of_classes(tmp_path, kind, expected):
    source = path = tmp_path / f"a.{kind}"
    if kind == "pth":
        write_state_dict(path, state_dict())
    elif kind == "mapping":
        source = state_dict()
    elif kind == "torch.safetensors":
        save_file(state_dict(), path, {"format": "pt", "architecture": "theirs"})
    else:
        store.save(path, store.Weights(expected, "tiny", 4))
    for classes in (None, 4):
        found = TINY(source, classes)
        assert same(found.variables, expected)
        assert found.num_classes == 4
    with pytest.raises(ValueError, match=r"num_classes is 7, but .*\) has 4 classes; leave it out"):
        TINY(source, 7)


def test_matconvnets_head_tells_the_number_of_classes(tmp_path):
    write_matconvnet(tmp_path / "a.mat")
    plain = Loader("plain", Plain())
    assert plain(tmp_path / "a.mat", None).num_classes == 4
    with pytest.raises(ValueError, match=r"num_classes is 9, but .* has 4 classes"):
        plain(tmp_path / "a.mat", 9)


def test_weights_of_another_network_are_refused(tmp_path, expected):
    store.save(tmp_path / "a.safetensors", store.Weights(expected, "huge", 4))
    with pytest.raises(ValueError, match="holds weights of 'huge', which are none of 'tiny'"):
        TINY(tmp_path / "a.safetensors", None)


def test_a_header_without_names_leaves_those_of_imagenet(tmp_path):
    variables = TINY(thousand(), None).variables
    store.save(tmp_path / "a.safetensors", store.Weights(variables, "tiny", 1000))
    assert TINY(tmp_path / "a.safetensors", None).class_names == imagenet.class_names()


def test_a_published_file_is_verified_wherever_it_lies(tmp_path):
    path = write_state_dict(tmp_path / "vgg16-397923af.pth", state_dict())
    with pytest.raises(ValueError, match=r"has the SHA-256 .*; expected 397923af"):
        TINY(path, 4)


def test_without_the_hubs_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        TINY("hf:timm/tiny", 4)


# Published weights have a thousand classes.


def thousand():
    draw = np.random.default_rng(0)
    return state_dict() | {
        "classifier.weight": draw.standard_normal((1000, 6)).astype(np.float32),
        "classifier.bias": np.zeros(1000, np.float32),
    }


@pytest.fixture
def content(tmp_path):
    path = write_state_dict(tmp_path / "original.pth", thousand())
    content = path.read_bytes()
    path.unlink()
    return content


def loader_for(url, content):
    digest = hashlib.sha256(content).hexdigest()
    published = Published("imagenet", url, digest[:8], 71.5, GREY)
    return Loader("tiny", Tiny(), (published,), progress=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def test_published_weights_are_downloaded_and_converted_once(cache, content):
    with serve(content, "tiny-1.pth") as server:
        loader = loader_for(server.url, content)
        first, second = loader("imagenet", 1000), loader("imagenet", 1000)
    assert len(server.asked) == 1
    expected = TINY(thousand(), 1000).variables
    for found in (first, second):
        assert same(found.variables, expected)
        assert found.preprocessing == GREY
        assert found.class_names == imagenet.class_names()
    _, metadata = read_safetensors(cache / "tiny-1.safetensors")
    assert json.loads(metadata["recipe"])["sha256"] == hashlib.sha256(content).hexdigest()
    assert not (cache / "tiny-1.pth").exists()


def test_a_file_put_into_the_cache_by_hand_is_used_and_kept(cache, content):
    loader = loader_for("http://127.0.0.1:9/tiny-1.pth", content)
    with pytest.raises(OSError, match=r"Download it elsewhere and put it at .*tiny-1\.pth"):
        loader("imagenet", 1000)
    (cache / "tiny-1.pth").write_bytes(content)
    assert same(loader("imagenet", 1000).variables, TINY(thousand(), 1000).variables)
    assert (cache / "tiny-1.pth").exists()


def test_a_wrong_file_in_the_cache_is_refused(cache, content):
    cache.mkdir(parents=True)
    (cache / "tiny-1.pth").write_bytes(content + b"x")
    with pytest.raises(ValueError, match=r"tiny-1\.pth has the SHA-256"):
        loader_for("http://127.0.0.1:9/tiny-1.pth", content)("imagenet", 1000)


def test_published_weights_have_a_thousand_classes(content):
    loader = loader_for("http://127.0.0.1:9/tiny-1.pth", content)
    with pytest.raises(
        ValueError, match="num_classes is 4, but 'imagenet' of 'tiny' has 1000 classes"
    ):
        loader("imagenet", 4)


PROGRAM = """
import sys
sys.path[:0] = sys.argv[3:]
from tiny_network import Tiny
from jaxplain.models.weights.published import Published
from jaxplain.models.weights.sources import Loader
published = (Published("imagenet", sys.argv[1], sys.argv[2], 50.0),)
try:
    variables = Loader("tiny", Tiny(), published)("imagenet", 1000).variables
except OSError as error:
    print(f"OSError: {error}")
else:
    print("loaded", float(variables["params"]["logits"]["kernel"].sum()))
"""


def start(url, content, folder):
    digest = hashlib.sha256(content).hexdigest()
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, digest, *paths],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAXPLAIN_CACHE": str(folder)},
    )


def test_two_processes_download_once(cache, content):
    with serve(content, "tiny-1.pth") as server:
        processes = [start(server.url, content, cache.parent) for _ in range(2)]
        answers = [process.communicate(timeout=120)[0] for process in processes]
    assert answers[0].startswith("loaded")
    assert answers[0] == answers[1]
    assert len(server.asked) == 1


@contextlib.contextmanager
def nobody():
    """Give up the administrator's rights, who can write anywhere, while the context lasts."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_cache_that_cannot_be_written(monkeypatch, content):
    # What is imported on use is imported now: another user may not read Python's folder.
    for module in ("filelock", "encodings.cp437"):
        importlib.import_module(module)
    expected = TINY(thousand(), 1000).variables
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("JAXPLAIN_CACHE", str(folder))
    try:
        (folder / "weights").mkdir()
        for path in (folder, folder / "weights"):
            path.chmod(0o555)
        with serve(content, "tiny-1.pth") as server:
            loader = loader_for(server.url, content)
            with nobody(), pytest.raises(OSError, match="cannot be written") as raised:
                loader("imagenet", 1000)
            message = str(raised.value)
            assert message.startswith(f"the cache {folder}/weights cannot be written (Permission")
            assert "Set $JAXPLAIN_CACHE to a folder that can, or download http" in message
            # What somebody else has put there is used.
            (folder / "weights").chmod(0o755)
            (folder / "weights" / "tiny-1.pth").write_bytes(content)
            (folder / "weights").chmod(0o555)
            with nobody():
                found = loader("imagenet", 1000)
            assert same(found.variables, expected)
            assert server.asked == []
    finally:
        for path in (folder, folder / "weights"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_the_table_of_published_weights_is_consistent():
    for name, files in PUBLISHED.items():
        assert len({file.name for file in files}) == len(files)
        for file in files:
            prefix = file.file.removesuffix(".pth")[-8:]
            assert file.sha256.startswith(prefix)
            assert len(file.sha256) in (8, 64)
            assert file.file.startswith(name.split("_")[0])
            assert file.url.startswith("https://download.pytorch.org/models/")
            assert 50 < file.top1 < 85


def test_transform_input_is_part_of_inceptions_preprocessing():
    # torchvision normalises as for ImageNet, then takes x * (std / 0.5) + (mean - 0.5) / 0.5.
    picture = np.random.default_rng(0).integers(0, 256, (400, 350, 3), np.uint8)
    mean, deviation = np.array(IMAGENET.mean), np.array(IMAGENET.std)
    plain = dataclasses.replace(GOOGLE_299, mean=tuple(mean), std=tuple(deviation))(picture)
    transformed = plain * (deviation / 0.5) + (mean - 0.5) / 0.5
    np.testing.assert_allclose(GOOGLE_299(picture), transformed, atol=1e-5)
