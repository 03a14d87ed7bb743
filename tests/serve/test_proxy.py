"""What the proxy of docs/serving.md adds to TorchServe, with nginx itself."""

import contextlib
import http.client
import http.server
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.client import Client
from serve.errors import AnswerError
from serve.keys import Keys
from tests.serve.asked import PROMPTS, body
from tests.serve.proxying import NGINX, SHIPPED, Proxy, free_port, proxying
from tests.serve.running import Running

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
N_STALLED, N_ADDRESSES = 300, 15


@pytest.fixture
def body_timeout_s(campaign: Callable[[int, int], int]) -> int:
    return campaign(6, 20)  # 20 as it is shipped


def changes(port: int, inference_port: int, metrics_port: int, body_timeout_s: int) -> dict[str, str]:
    ports = {"8080": inference_port, "8082": metrics_port, "8000": port}
    return {
        **{f"127.0.0.1:{shipped};": f"127.0.0.1:{here};" for shipped, here in ports.items()},
        "client_body_timeout 20s;": f"client_body_timeout {body_timeout_s}s;",
    }


@pytest.fixture
def proxy(server: Running, tmp_path: Path, body_timeout_s: int) -> Iterator[Proxy]:
    port, ports = free_port(), server.config.server
    changed = changes(port, ports.inference_port, ports.metrics_port, body_timeout_s)
    with proxying(SHIPPED.read_text(), tmp_path, changed, port) as running:
        yield running


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[Proxy, int]]:
    """The proxy without TorchServe, and the port at which it looks for that."""
    port, inference_port = free_port(), free_port()
    changed = changes(port, inference_port, free_port(), 20)
    with proxying(SHIPPED.read_text(), tmp_path, changed, port) as running:
        yield running, inference_port


def token_of(server: Running) -> str:
    token: str = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    return token


@pytest.mark.fault("S2")
def test_tokens_rates_and_health(proxy: Proxy, server: Running, image: bytes, figure: Callable[[str], None]) -> None:
    good = json.dumps(body(image, prompts=PROMPTS)).encode()
    assert proxy.send("POST", good, token_of(server))[0] == 200
    assert proxy.send("POST", good, token_of(server), "/v1/models/medclip:predict")[0] == 200
    assert proxy.send("POST", good, None, "/v1/models/medclip:predict")[0] == 401
    for token in (None, "", "x", secrets.token_hex(4)):
        status, answer = proxy.send("POST", good, token)
        assert (status, json.loads(answer)["error"]["code"]) == (401, "bad_token")
    assert proxy.send("GET", b"", None, "/health")[0] == 200
    status, answer, headers = proxy.ask("GET", b"", token_of(server))
    assert (status, json.loads(answer)["error"]["code"], headers["allow"]) == (405, "method_not_allowed", "POST")
    assert proxy.send("GET", b"", token_of(server), "/models")[0] == 404
    assert proxy.send("GET", b"", None, "/token")[0] == 404
    error_of_a_bad_request = proxy.send("POST", b"{", token_of(server))
    assert (error_of_a_bad_request[0], json.loads(error_of_a_bad_request[1])["error"]["code"]) == (400, "bad_json")
    statuses = [proxy.send("POST", good, secrets.token_hex(4))[0] for _ in range(120)]
    assert set(statuses) == {401, 429}
    time.sleep(1)
    assert proxy.send("POST", good, token_of(server))[0] == 200
    figure(f"of 120 guesses at once {statuses.count(429)} were not even looked at (429), the rest got 401")


def test_what_call_it_is_is_said_by_the_path_alone(proxy: Proxy, server: Running, image: bytes) -> None:
    good = json.dumps(body(image, prompts=PROMPTS)).encode()
    status, answer, _ = proxy.ask("POST", good, token_of(server), explain="True")
    assert (status, "predictions" in json.loads(answer)) == (200, True)


def test_a_server_that_is_down_is_said_in_json(upstream: tuple[Proxy, int]) -> None:
    proxy, _ = upstream
    status, answer, headers = proxy.ask("POST", b"{}", "any")
    assert (status, json.loads(answer)["error"]["code"]) == (502, "no_server")
    assert (headers["content-type"], headers["retry-after"]) == ("application/json", "5")


def test_an_error_of_the_server_passes_as_it_is(upstream: tuple[Proxy, int]) -> None:
    proxy, port = upstream
    with stand_in(port, 500, b'{"error":{"code":"internal_error"}}'):
        assert proxy.send("POST", b"{}", "any") == (500, b'{"error":{"code":"internal_error"}}')
    with stand_in(port, 503, b"full"):
        assert proxy.send("POST", b"{}", "any") == (503, b"full")


@contextlib.contextmanager
def stand_in(port: int, status: int, content: bytes) -> Iterator[None]:
    """Stands in for a TorchServe that takes every token, and fails."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(status, content)

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.fault("S2")
def test_the_client_renews_its_token_behind_the_proxy(proxy: Proxy, server: Running, image: bytes) -> None:
    config = server.config.server
    keys = Keys(server.folder / "key_file.json")
    client = Client(
        f"http://127.0.0.1:{proxy.port}",
        keys=keys,
        management_url=config.url("management_port"),
        token="too-old",
        retries=0,
    )
    with pytest.raises(AnswerError) as caught:
        Client(f"http://127.0.0.1:{proxy.port}", token="too-old", retries=0).predict(image, prompts=PROMPTS)
    assert (caught.value.status, caught.value.code) == (401, "bad_token")
    assert client.predict(image, prompts=PROMPTS)["predictions"]


@pytest.mark.fault("S3")
def test_a_body_over_the_limit_does_not_reach_torchserve(proxy: Proxy, server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    connection.putrequest("POST", "/predictions/medclip")
    connection.putheader("authorization", f"Bearer {token_of(server)}")
    connection.putheader("content-length", str(25 * 1024**2))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "request_too_large")
    connection.close()


@pytest.mark.fault("S5")
def test_stalled_bodies_cost_little_and_go(
    proxy: Proxy, server: Running, image: bytes, body_timeout_s: int, figure: Callable[[str], None]
) -> None:
    good = json.dumps(body(image, prompts=PROMPTS)).encode()
    for _ in range(20):  # what Java takes for its first requests it takes once
        proxy.send("POST", good, token_of(server))
    before = proxy.memory() + server.java().memory_full_info().uss
    head = (
        f"POST /predictions/medclip HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token_of(server)}\r\n"
        "content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    ).encode()
    clients = []
    for i in range(N_STALLED):  # from several addresses, each below its limit of the rate
        source = (f"127.0.0.{2 + i % N_ADDRESSES}", 0)
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=60, source_address=source)
        client.sendall(head + b"{" * 20_000)
        clients.append(client)
        if i % 20 == 19:
            time.sleep(0.05)  # the token of each is asked about
    wait_until_open(proxy, N_STALLED)
    time.sleep(0.5)  # what they have sent is read
    grown = proxy.memory() + server.java().memory_full_info().uss - before
    n_open = proxy.n_connections()
    begun = time.monotonic()
    assert proxy.send("GET", b"", None, "/health")[0] == 200
    for client in clients:
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
        client.close()
    seconds = time.monotonic() - begun
    assert n_open == N_STALLED
    assert grown <= 64 * 1024**2
    assert seconds <= 60
    assert list((proxy.folder / "body").rglob("*.*")) == []
    figure(
        f"{n_open} stalled bodies open at once: +{grown / 1024**2:.0f} MB, all gone {seconds:.0f} s later "
        f"(limit {body_timeout_s} s)"
    )
    assert proxy.send("POST", good, token_of(server))[0] == 200


def wait_until_open(proxy: Proxy, n: int) -> None:
    """Wait until the proxy holds so many connections."""
    end = time.monotonic() + 60
    while proxy.n_connections() < n and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.fault("S19")
def test_the_proxy_logs_nothing_of_a_request(proxy: Proxy, server: Running, image: bytes) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    content = json.dumps(body(image, prompts=[canary])).encode()
    assert proxy.send("POST", content, token_of(server))[0] == 200
    assert proxy.send("POST", content, canary)[0] == 401
    assert proxy.send("POST", content, token_of(server), f"/predictions/{canary}")[0] in (400, 404)
    assert proxy.send("POST", content, token_of(server), f"/predictions/medclip?{canary}")[0] == 200  # never looked at
    assert proxy.send("POST", content, token_of(server), f"/{canary}")[0] == 404
    assert proxy.send("POST", content[:-10], token_of(server))[0] == 400
    for path in proxy.folder.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
