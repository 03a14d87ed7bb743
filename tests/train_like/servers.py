"""A server on the loopback that misbehaves as told."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What a server has, what it does wrong with the next requests, and what it was asked.

    Attributes:
        content: By path.
        faults: One a request, the first first; then it behaves. `("status", 503)`, `("cut", n)` sends n bytes of the
            body and hangs up, `("silent", seconds)`, `("flip",)` damages a byte, `("page",)` answers with HTML.
        has_etag: Whether it names the state of its files.
        does_ranges: Whether it can go on in the middle.
        requests: Path and Range of each request.
        n_sent: Bytes of bodies.
    """

    content: dict[str, bytes]
    faults: list[tuple[str | float, ...]] = field(default_factory=list)
    has_etag: bool = True
    does_ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    n_sent: int = 0
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    @property
    def ranges(self) -> Sequence[str | None]:
        return [asked for _, asked in self.requests]


@contextmanager
def serving(content: dict[str, bytes], **options: bool) -> Iterator[Served]:
    served = Served(content, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
            asked = self.headers.get("Range")
            served.requests.append((self.path, asked))
            fault = served.faults.pop(0) if served.faults else ("",)
            if fault[0] == "silent":
                time.sleep(float(fault[1]))
                self.close_connection = True
                return
            if fault[0] == "status":
                self._answer(int(fault[1]), b"no", "text/plain")
            elif fault[0] == "page":
                self._answer(200, b"<html>Please log in</html>", "text/html; charset=utf-8")
            elif self.path not in served.content:
                self._answer(404, b"no", "text/plain")
            else:
                self._send(served.content[self.path], asked, fault)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send(self, whole: bytes, asked: str | None, fault: tuple[str | float, ...]) -> None:
            tag = f'"{hashlib.sha256(whole).hexdigest()[:16]}"'
            start = 0
            if asked and served.does_ranges and self.headers.get("If-Range") in (None, tag):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(whole) > 0:
                self._answer(416, b"", "text/plain")
                return
            body = bytearray(whole[start:])
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            if served.has_etag:
                self.send_header("ETag", tag)
            self.end_headers()
            if fault[0] == "flip":
                body[len(body) // 2] ^= 1
            if fault[0] == "cut":
                body = body[: int(fault[1])]
                self.close_connection = True
            self.wfile.write(body)
            served.n_sent += len(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
