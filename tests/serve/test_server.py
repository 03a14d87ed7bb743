"""The endpoint through a real TorchServe: what the server does to requests and answers on their way."""

import contextlib
import http.client
import io
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mapstack.models import EmbeddingModel
from serve.client import Client
from serve.errors import AnswerError
from tests.serve.asked import PROMPTS, body, picture_file
from tests.serve.bad_requests import Bad, bad_requests
from tests.serve.running import Running
from tests.serve.test_endpoint import assert_same, maps_of, offline


def refused(call: Callable[[], Any]) -> AnswerError:
    with pytest.raises(AnswerError) as caught:
        call()
    return caught.value


def send(
    server: Running,
    body: bytes,
    kind: str,
    *,
    verb: str = "explanations",
    path: str | None = None,
    query: str = "",
    token: str | None = None,
) -> tuple[int, bytes]:
    """Send bytes as they are, valid or not."""
    config = server.config
    if token is None:
        token = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    connection = http.client.HTTPConnection(config.server.host, config.server.inference_port, timeout=120)
    try:
        headers = {"content-type": kind, "authorization": f"Bearer {token}"}
        connection.request("POST", path or f"/{verb}/medclip{query}", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def metrics_text(server: Running) -> str:
    """Return all metrics, which ask for no token."""
    address = (server.config.server.host, server.config.server.metrics_port)
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def counts(server: Running, name: str) -> dict[str, float]:
    """Read a metric by its labels."""
    pattern = rf"^{name}\{{(.*?)\}} (\S+)$"
    return {labels: float(value) for labels, value in re.findall(pattern, metrics_text(server), re.MULTILINE)}


def worker_pids(server: Running) -> list[int]:
    return [worker.pid for worker in server.workers()]


@pytest.mark.parametrize("method", ["gradient", {"name": "occlusion", "sliding_window_shapes": 56, "strides": 56}])
def test_a_served_map_is_the_offline_map(
    server: Running, demo_model: EmbeddingModel, image: bytes, method: str | dict[str, Any]
) -> None:
    block = {"name": method} if isinstance(method, str) else method
    expected = offline(demo_model, image, block)
    wanted = {"prompts": PROMPTS, "method": method, "output": "npy"}
    for picture, fields in ((None, body(image, **wanted)), (image, wanted)):  # as base64, and as a file of a form
        answer = server.client().call("explanations", picture, fields).json()
        assert_same(maps_of(answer), expected.maps)
        assert [row["logit"] for row in answer["maps"]] == pytest.approx(expected.logits.tolist(), abs=1e-4)
        assert answer["note"] == demo_model.note
    reply = server.client().call(
        "explanations", image, {"prompts": PROMPTS[:1], "method": method, "output": "npy"}, accept="application/x-npy"
    )
    assert reply.content_type == "application/x-npy"
    assert_same(np.load(io.BytesIO(reply.body)), expected.maps[:1])


def test_logits_and_an_overlay(server: Running, demo_model: EmbeddingModel, image: bytes) -> None:
    expected = offline(demo_model, image, {"name": "gradient"})
    found = server.client().predict(image, prompts=PROMPTS)
    assert [row["logit"] for row in found["predictions"]] == pytest.approx(expected.logits.tolist(), abs=1e-4)
    wanted = {"prompts": PROMPTS[:1], "method": "gradient", "output": "png"}
    reply = server.client().call("explanations", image, wanted, accept="image/png")
    assert reply.content_type == "image/png"
    assert Image.open(io.BytesIO(reply.body)).size == (160, 200)
    assert json.loads(reply.headers["x-mapstack-summary"])["maps"][0]["logit"] == pytest.approx(
        float(expected.logits[0]), abs=1e-4
    )


@pytest.mark.fault("S1")
def test_without_a_token_nothing_is_answered(server: Running, image: bytes) -> None:
    config = server.config
    for token in (None, "x", "0" * 8):
        stranger = Client(
            config.server.url("inference_port"),
            "medclip",
            token=token,
            management_url=config.server.url("management_port"),
            retries=0,
        )
        assert refused(lambda: stranger.predict(image, prompts=PROMPTS)).status in (400, 401, 403)  # noqa: B023
        assert refused(lambda: stranger.explain(image, prompts=PROMPTS)).status in (400, 401, 403)  # noqa: B023
        assert refused(stranger.describe_model).status in (400, 401, 403)  # noqa: B023


@pytest.mark.fault("S1")
def test_the_shipped_settings_are_closed(server: Running) -> None:
    lines = (server.folder / "config.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    for name in ("inference_address", "management_address", "metrics_address"):
        assert settings[name].startswith("http://127.0.0.1:")
    assert settings["grpc_inference_address"] == settings["grpc_management_address"] == "127.0.0.1"
    assert settings["disable_token_authorization"] == "false"
    assert settings["enable_model_api"] == "false"
    assert settings["install_py_dep_per_model"] == "false"
    assert settings["enable_envvars_config"] == settings["use_env_allowed_urls"] == "false"
    assert all(not re.fullmatch(settings["allowed_urls"], url) for url in ("file:///x.mar", "http://h/x.mar", "x.mar"))
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in [server.java(), *server.java().children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}
    assert {port for _, port in listening} == set(server.config.server.ports().values())
    for path in (server.folder, *(server.folder / name for name in ("cache", "tmp", "logs", "key_file.json"))):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.fault("S1")
@pytest.mark.fault("S17")
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.mar", "../../medclip.mar", "/etc/passwd", "..%2f..%2fx.mar"])
def test_no_model_can_be_registered(server: Running, url: str) -> None:
    token = json.loads((server.folder / "key_file.json").read_text())["management"]["key"]
    before = sorted(path.name for path in (server.folder / "store").iterdir())
    config = server.config.server
    connection = http.client.HTTPConnection(config.host, config.management_port, timeout=30)
    connection.request("POST", f"/models?url={url}", headers={"authorization": f"Bearer {token}"})
    status = connection.getresponse().status
    connection.close()
    assert 400 <= status < 500
    assert sorted(path.name for path in (server.folder / "store").iterdir()) == before


@pytest.mark.fault("S17")
@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "../../etc/passwd", "medclip/../medclip", "%2e%2e", "a%00b"]
)
def test_a_model_name_is_no_path(server: Running, name: str) -> None:
    config = server.config.server
    token = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    connection = http.client.HTTPConnection(config.host, config.inference_port, timeout=30)
    connection.request("POST", f"/predictions/{name}", b"{}", {"authorization": f"Bearer {token}"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert 400 <= response.status < 500
    assert b"root:" not in text


@pytest.mark.fault("S3")
def test_a_body_over_the_limit_is_refused_before_a_worker_sees_it(server: Running, image: bytes) -> None:
    pids = worker_pids(server)
    before = counts(server, "mapstack_refused")
    too_large = b"{" + b" " * server.config.max_request_bytes + b"}"
    try:
        status, _ = send(server, too_large, "application/json")
    except (BrokenPipeError, ConnectionResetError):  # it need not read to the end what it refuses
        status = 413
    assert status == 413
    assert worker_pids(server) == pids
    assert counts(server, "mapstack_refused") == before
    assert server.client().predict(image, prompts=PROMPTS)["predictions"]


@pytest.mark.fault("S4")
def test_an_answer_over_the_limit_is_refused_and_the_worker_lives(server: Running, image: bytes) -> None:
    pids = worker_pids(server)
    prompts = [f"a text of number {i}" for i in range(8)]
    error = refused(lambda: server.client().explain(image, prompts=prompts, method="gradient", output="npy"))
    assert (error.status, error.code) == (422, "answer_too_large")
    assert worker_pids(server) == pids


@pytest.mark.fault("S7")
def test_no_generated_request_gets_a_5xx_or_harms_the_server(
    server: Running, image: bytes, campaign: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    n, pids, by_status = campaign(100, 10_000), worker_pids(server), dict[int, int]()
    lock = threading.Lock()

    def try_one(bad: Bad) -> None:
        verb = "predictions" if len(bad.body) % 2 else "explanations"
        status, answer = send(server, bad.body, bad.content_type, verb=verb, query=bad.query)
        assert 400 <= status < 500, (bad.query, bad.content_type, bad.body[-200:], answer)
        found = json.loads(answer, parse_constant=lambda name: pytest.fail(name))
        assert "code" in found.get("error", found), found  # a form that is broken is refused by TorchServe itself
        with lock:
            by_status[status] = by_status.get(status, 0) + 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(try_one, islice(bad_requests(1, image), n)))
    assert worker_pids(server) == pids
    assert server.client().predict(image, prompts=PROMPTS)["predictions"]
    figure(f"{n} generated requests through the server: {dict(sorted(by_status.items()))}, 0 answers 5xx")


@pytest.mark.fault("S7")
@pytest.mark.parametrize(
    "odd",
    [
        b"x-name: \xff\xfe",
        b"x-name: \xe4\xb8\xad",
        b"accept: \xff, image/png;q=\xff",
        b"explain: True",
        b"Explain: x",
        b"ts_stream_next: true",
        b"content-type: application/json; charset=utf-16",
        b"x-long: " + b"a" * 4000,
    ],
    ids=lambda odd: str(odd)[:30],
)
def test_odd_headers_do_no_harm(server: Running, image: bytes, odd: bytes) -> None:
    pids, text = worker_pids(server), json.dumps(body(image, prompts=PROMPTS[:1])).encode()
    token = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    head = f"POST /predictions/medclip HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
    with socket.create_connection((server.config.server.host, server.config.server.inference_port), timeout=60) as sent:
        sent.sendall(head.encode() + f"content-length: {len(text)}\r\n".encode() + odd + b"\r\n\r\n" + text)
        answer = sent.recv(65536)
    assert answer.split()[1] in (b"200", b"400")
    assert worker_pids(server) == pids


@pytest.mark.fault("S9")
def test_a_bad_request_does_not_harm_those_beside_it(server: Running, image: bytes) -> None:
    def one(i: int) -> int:
        bad = i % 4 == 3
        fields = body(image[:-40] if bad else image, prompts=PROMPTS)
        return send(server, json.dumps(fields).encode(), "application/json", verb="predictions")[0]

    with ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(one, range(32)))
    assert statuses == [422 if i % 4 == 3 else 200 for i in range(32)]


@pytest.mark.fault("S10")
def test_a_hundred_at_once_are_answered(server: Running, image: bytes, figure: Callable[[str], None]) -> None:
    barrier, text = threading.Barrier(100), json.dumps(body(image, prompts=PROMPTS)).encode()

    def one(_: int) -> int:
        barrier.wait()
        return send(server, text, "application/json", verb="predictions")[0]

    with ThreadPoolExecutor(100) as threads:
        statuses = list(threads.map(one, range(100)))
    figure(f"100 requests at once: {statuses.count(200)} answered")
    assert statuses == [200] * 100


@pytest.mark.fault("S11")
def test_fifty_identical_requests_cost_one_computation(server: Running, figure: Callable[[str], None]) -> None:
    fresh = picture_file(seed=secrets.randbelow(10**6))
    before = sum(counts(server, "mapstack_cache_misses").values())
    barrier = threading.Barrier(50)

    def one(_: int) -> tuple[bool, str]:
        barrier.wait()
        answer = server.client().explain(fresh, prompts=PROMPTS, method="gradient", output="npy")
        return answer["cached"], answer["npy"]

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(one, range(50)))
    assert sum(counts(server, "mapstack_cache_misses").values()) - before == 1
    maps = np.stack([maps_of({"npy": npy}) for _, npy in answers])
    assert np.abs(maps - maps[0]).max() <= 1e-5 * np.abs(maps[0]).max()
    figure("50 identical requests at once: 1 computation")


def test_what_happened_is_counted(server: Running, image: bytes) -> None:
    server.client().explain(image, prompts=PROMPTS, method="gradient")
    refused(lambda: server.client().explain(image, prompts=PROMPTS, method="fast"))
    answered, seconds = counts(server, "mapstack_answered"), counts(server, "mapstack_seconds_count")
    for found in (answered, seconds):
        assert any('call="explanations",method="gradient",route="prompts"' in labels for labels in found)
    assert any('code="unknown_method"' in labels for labels in counts(server, "mapstack_refused"))
    assert counts(server, "mapstack_cache_bytes")


@pytest.mark.fault("S2")
def test_a_token_is_renewed_and_the_old_one_refused(server: Running, image: bytes) -> None:
    old = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    client = server.client()
    client.renew_token()
    assert refused(lambda: server.client(token=old, keys=None).predict(image, prompts=PROMPTS)).status in (400, 401)
    assert client.predict(image, prompts=PROMPTS)["predictions"]


@pytest.mark.fault("S19")
def test_nothing_of_a_request_is_found_in_logs_metrics_errors_or_files(
    server: Running, campaign: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    n, told, canaries = campaign(20, 200), bytearray(), []
    for i in range(n):
        canary = f"canary{secrets.token_hex(8)}"
        canaries.append(canary)
        told += b"".join(answer for answer in plant(server, canary, i))
    places = {path: path.read_bytes() for path in server.folder.rglob("*") if path.is_file() and not path.is_socket()}
    assert "mapstack_refused" in (metrics := metrics_text(server))
    for canary in canaries:
        word = canary.encode()
        assert word not in told
        assert canary not in metrics
        assert [path for path, content in places.items() if word in content] == []
    assert not [line for line in server.logs().splitlines() if line.startswith(("forged", "[METRICS]"))]
    figure(f"{n} canaries of 7 kinds: 0 found in {len(places)} files, metrics and error bodies")


def plant(server: Running, canary: str, i: int) -> list[bytes]:
    """Send a canary where a patient's name could stand; return the bodies of the errors."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", canary)
    buffer = io.BytesIO()
    Image.new("L", (64, 64), i % 256).save(buffer, "PNG", pnginfo=text)
    picture = buffer.getvalue()
    forged = f"{canary}\nforged line\n[METRICS]forged.Count:1|#a:{canary}|#hostname:h,1"
    wanted = {"prompts": [forged], "output": "json"}
    replies = [
        send(server, json.dumps(body(picture, **wanted)).encode(), "application/json", verb="predictions"),
        send(server, json.dumps(body(picture, prompts=[canary], method=forged)).encode(), "application/json"),
        send(server, json.dumps(body(picture, **{canary: forged})).encode(), "application/json"),
        send(server, json.dumps(body(picture[:60], prompts=[canary])).encode(), "application/json"),
        send(server, b"{}", "application/json", query=f"?patient={canary}"),
        send(server, b"{}", "application/json", token=canary),
        send(server, form(canary, picture, wanted), "multipart/form-data; boundary=b", verb="predictions"),
        send(server, form(canary, picture, {"prompts": canary}), "multipart/form-data; boundary=b"),
    ]
    assert [status == 200 for status, _ in replies] == [True, *[False] * 5, True, False]
    return [answer for status, answer in replies if status != 200]


def form(canary: str, picture: bytes, fields: dict[str, Any]) -> bytes:
    head = f'--b\r\ncontent-disposition: form-data; name="image"; filename="{canary}.png"\r\n\r\n'.encode()
    rest = b'\r\n--b\r\ncontent-disposition: form-data; name="request"\r\n\r\n' + json.dumps(fields).encode()
    return head + picture + rest + b"\r\n--b--\r\n"


@pytest.mark.fault("S20")
@pytest.mark.long
def test_memory_does_not_grow_under_load(
    server: Running, campaign: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    seconds = campaign(20, 180)
    load_for(server, seconds / 6)
    before = memory(server)
    n = load_for(server, seconds)
    grown = (memory(server) - before) / 1024**2
    figure(f"{seconds} s of load, {n} requests: +{grown:.0f} MB")
    assert grown <= 50


def load_for(server: Running, seconds: float) -> int:
    end, done = time.monotonic() + seconds, []

    def work(number: int) -> None:
        picture = picture_file(seed=number)
        i = 0
        while time.monotonic() < end:
            i += 1
            fields = {"prompts": [f"a text of number {number} {i}"], "method": "gradient"}
            assert server.client().call("explanations" if i % 2 else "predictions", picture, fields).status == 200
            done.append(i)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    return len(done)


def memory(server: Running) -> int:
    """Sum what the processes have for themselves [bytes]: the cache's pages are shared and can be taken back."""
    return sum(process.memory_full_info().uss for process in [server.java(), *server.workers()])
