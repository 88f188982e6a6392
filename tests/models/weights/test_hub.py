"""Weights on the Hugging Face hub: its own library, against a server on this machine."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.numpy import save
from tiny_network import Tiny, state_dict

from jaxplain.models.weights import store
from jaxplain.models.weights.sources import Loader, _timm_preprocessing
from jaxplain.preprocessing import Preprocessing

COMMIT = "a" * 40
SETTINGS = {
    "input_size": [3, 299, 299],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
}
GREY = Preprocessing((4, 5), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@contextlib.contextmanager
def hub(repositories):
    """Serve {repository: {file: content}} as the hub does, at its revisions main and v2."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, code, content=b"", **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            parts = self.path.lstrip("/").split("/", 4)
            if len(parts) != 5 or parts[2] != "resolve":  # the library asks other things, too
                self.answer(404)
                return
            owner, name, _, revision, file = parts
            files = repositories.get(f"{owner}/{name}")
            if files is None:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif revision not in ("main", "v2", COMMIT):
                self.answer(404, X_Error_Code="RevisionNotFound", X_Repo_Commit=COMMIT)
            elif file not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                digest = hashlib.sha256(files[file]).hexdigest()
                self.answer(200, files[file], ETag=f'"{digest}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PROGRAM = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from tiny_network import Tiny
from jaxplain.models.weights.sources import Loader

def load(reference):
    try:
        found = Loader("tiny", Tiny())(reference, None)
    except (OSError, ValueError) as error:
        return [type(error).__name__, str(error)]
    about = found.preprocessing and found.preprocessing.to_json()
    kernel = found.variables["params"]["logits"]["kernel"]
    return [float(kernel.sum()), about, found.class_names]

print(json.dumps([load(reference) for reference in sys.argv[3:]]))
"""


def ask(endpoint, home, *references, offline=False):
    """What another process makes of references; the library reads its settings when imported."""
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths, *references],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(run.stdout)


def test_the_hub_gives_weights_and_their_preprocessing(tmp_path):
    variables = Loader("tiny", Tiny())(state_dict(), None).variables
    total = pytest.approx(float(variables["params"]["logits"]["kernel"].sum()))
    store.save(
        tmp_path / "own.safetensors", store.Weights(variables, "tiny", 4, GREY, tuple("abcd"))
    )
    content, config = save(state_dict()), json.dumps({"pretrained_cfg": SETTINGS}).encode()
    repositories = {
        "timm/tiny": {"model.safetensors": content, "config.json": config},
        "somebody/plain": {"model.safetensors": content},
        "somebody/own": {"model.safetensors": (tmp_path / "own.safetensors").read_bytes()},
        "somebody/strange": {"model.safetensors": content, "config.json": b"[1]"},
        "somebody/empty": {"README.md": b"x"},
    }
    with hub(repositories) as endpoint:
        timm, tagged, plain, own, strange, empty, unknown, revision, wrong = ask(
            endpoint,
            tmp_path,
            "hf:timm/tiny",
            "hf:timm/tiny@v2",
            "hf:somebody/plain",
            "hf:somebody/own",
            "hf:somebody/strange",
            "hf:somebody/empty",
            "hf:timm/none",
            "hf:timm/tiny@v9",
            "hf:no name/a/b",
        )
    theirs = Preprocessing(
        (299, 299), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), resize=341, interpolation="bicubic"
    )
    assert timm == tagged == [total, theirs.to_json(), None]
    assert plain == [total, None, None]
    assert own == [total, GREY.to_json(), list("abcd")]
    assert strange[0] == "ValueError"
    assert "config.json of 'hf:somebody/strange' is not one of timm's" in strange[1]
    assert empty[0] == "FileNotFoundError"
    assert empty[1].endswith("the repository has no model.safetensors")
    for (kind, message), said in ((unknown, "Repository Not Found"), (revision, "Revision Not F")):
        assert kind == "OSError"
        assert message.startswith("cannot fetch model.safetensors of 'hf:timm/")
        assert said in message
        assert "\n" not in message
    assert wrong[0] == "HFValidationError"
    assert "no name/a/b" in wrong[1]
    # Without the network, what was fetched is still there.
    again, plain, other = ask(
        endpoint, tmp_path, "hf:timm/tiny", "hf:somebody/plain", "hf:timm/other", offline=True
    )
    assert (again, plain) == (timm, [total, None, None])
    assert other[0] == "OSError"
    assert "the hub cannot be reached, and it has not been fetched before" in other[1]


def test_timms_settings_that_say_nothing_of_pictures():
    assert _timm_preprocessing({}) is None
    assert _timm_preprocessing({"input_size": [3, 8, 8], "mean": [0.5] * 3}) is None


@pytest.mark.parametrize(("mode", "keeps"), [(None, True), ("center", True), ("squash", False)])
def test_timms_ways_to_crop_are_followed(mode, keeps):
    found = _timm_preprocessing(SETTINGS | {"crop_mode": mode})
    assert (found.resize, found.keep_aspect) == (341, keeps)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode is 'border'; supported are center, squash"),
        ({"input_size": [3, 224, 299]}, "input_size is 224 x 299; supported are squares"),
        ({"interpolation": "random"}, "unknown interpolation 'random'"),
        ({"crop_pct": 1.1}, "resize is 271"),
    ],
)
def test_timms_settings_that_cannot_be_followed_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        _timm_preprocessing(SETTINGS | settings)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens there
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }
    program = """
import time
time.sleep = lambda seconds: None  # between attempts
from jaxplain.models.weights.sources import _fetch
try:
    _fetch("hf:timm/none", "model.safetensors")
except OSError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert "the hub cannot be reached" in run.stdout
    assert run.stdout.count("\n") == 1
    assert run.stderr == ""
