"""A server of one file on this machine, which can be told to fail."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Server:
    """What the server does and what it has been asked.

    Attributes:
        content: the file.
        status: what it answers; 200 to serve.
        breaks: after how many bytes it hangs up, one number a request; then it no longer does.
        ranges: whether it can continue from the middle.
        asked: the `Range` of every request, "" for the whole.
    """

    content: bytes
    status: int = 200
    breaks: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    asked: list[str] = dataclasses.field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serve(content: bytes, name: str = "file.pth", **options: object) -> Iterator[Server]:
    """Serve `content` at `url` while the context lasts."""
    state = Server(content, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            start = start if state.ranges else 0
            if start >= len(state.content) > 0 and start:
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(state.content)}")
            self.end_headers()
            self.wfile.write(body[: state.breaks.pop(0)] if state.breaks else body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/{name}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
