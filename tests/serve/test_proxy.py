"""What the proxy of docs/serving.md adds to TorchServe, with nginx itself."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serve.client import Client
from serve.errors import AnswerError
from serve.keys import Keys
from tests.serve.asked import PROMPTS, body
from tests.serve.running import ROOT, Running

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Proxy:
    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"

    def send(
        self, verb: str, content: bytes, token: str | None, path: str = "/predictions/medclip"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {"content-type": "application/json"} | (
                {} if token is None else {"authorization": f"Bearer {token}"}
            )
            connection.request(verb, path, content, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def memory(self) -> int:
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().uss for each in (parent, *parent.children()))


@pytest.fixture
def body_timeout_s(campaign: Callable[[int, int], int]) -> int:
    return campaign(3, 20)  # 20 as it is shipped


@pytest.fixture
def proxy(server: Running, tmp_path: Path, body_timeout_s: int) -> Iterator[Proxy]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (ROOT / "serve" / "nginx.conf").read_text()
    ports = server.config.server
    for shipped, here in (("8080", ports.inference_port), ("8082", ports.metrics_port), ("8000", port)):
        assert text.count(f"127.0.0.1:{shipped};") == 1
        text = text.replace(f"127.0.0.1:{shipped};", f"127.0.0.1:{here};")
    assert text.count("client_body_timeout 20s;") == 1
    text = text.replace("client_body_timeout 20s;", f"client_body_timeout {body_timeout_s}s;")
    (tmp_path / "nginx.conf").write_text(text)
    options = "daemon off;" + (" user root;" if os.getuid() == 0 else "")
    process = subprocess.Popen(
        [str(NGINX), "-p", f"{tmp_path}/", "-c", str(tmp_path / "nginx.conf"), "-g", options], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield Proxy(port, tmp_path, process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


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
    assert proxy.send("GET", b"", token_of(server))[0] == 403
    assert proxy.send("GET", b"", token_of(server), "/models")[0] == 404
    assert proxy.send("GET", b"", None, "/token")[0] == 404
    error_of_a_bad_request = proxy.send("POST", b"{", token_of(server))
    assert (error_of_a_bad_request[0], json.loads(error_of_a_bad_request[1])["error"]["code"]) == (400, "bad_json")
    statuses = [proxy.send("POST", good, secrets.token_hex(4))[0] for _ in range(120)]
    assert set(statuses) == {401, 429}
    time.sleep(1)
    assert proxy.send("POST", good, token_of(server))[0] == 200
    figure(f"of 120 guesses at once {statuses.count(429)} were not even looked at (429), the rest got 401")


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
    for i in range(300):
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
        client.sendall(head + b"{" * 20_000)
        clients.append(client)
        if i % 20 == 19:
            time.sleep(1.0)  # below the limit of the rate
    grown = proxy.memory() + server.java().memory_full_info().uss - before
    begun = time.monotonic()
    assert proxy.send("GET", b"", None, "/health")[0] == 200
    for client in clients:
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
        client.close()
    seconds = time.monotonic() - begun
    assert grown <= 64 * 1024**2
    assert seconds <= 60
    assert list((proxy.folder / "body").rglob("*.*")) == []
    figure(f"300 stalled bodies: +{grown / 1024**2:.0f} MB, all gone {seconds:.0f} s later (limit {body_timeout_s} s)")
    assert proxy.send("POST", good, token_of(server))[0] == 200


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
