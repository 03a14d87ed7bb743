"""When the client tries again, and when it does not."""

import contextlib
import copy
import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve import client as client_module
from serve.cli import main
from serve.client import Client
from serve.errors import AnswerError, ServerError
from serve.keys import KEY_FILE, Keys


@contextmanager
def answering(*statuses: int, after_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers so, one status after the other, and keeps what it was sent."""
    waiting, bodies = list(statuses), list[bytes]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            status = waiting.pop(0)
            time.sleep(after_s)
            content = json.dumps({"error": {"code": "some_code", "message": "a reason"}, "predictions": []}).encode()
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.01)


def test_a_server_that_is_full_is_asked_again() -> None:
    with answering(503, 429, 502, 200) as (url, bodies):
        assert Client(url, retries=3).predict(b"picture", prompts=["x"]) == {
            "error": {"code": "some_code", "message": "a reason"},
            "predictions": [],
        }
    assert len(bodies) == 4
    assert all(b"picture" in body and b'"prompts": ["x"]' in body for body in bodies)


def test_it_gives_up_in_the_end() -> None:
    with answering(503, 503) as (url, bodies), pytest.raises(AnswerError, match="503") as caught:
        Client(url, retries=1).predict(b"picture")
    assert len(bodies) == 2
    assert caught.value.status == 503


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500])
def test_what_is_refused_is_not_asked_again(status: int) -> None:
    with answering(status) as (url, bodies), pytest.raises(AnswerError, match="a reason") as caught:
        Client(url, retries=5).predict(b"picture")
    assert len(bodies) == 1
    assert (caught.value.status, caught.value.code) == (status, "some_code")


def test_a_call_that_takes_too_long_is_not_sent_again() -> None:
    """The first is still being computed: four more would be computed beside it."""
    with answering(*[200] * 5, after_s=1.0) as (url, bodies):
        with pytest.raises(ServerError, match=r"no answer from .* within 0\.2 s; it is not asked again"):
            Client(url, retries=4, timeout_s=0.2).predict(b"picture")
        time.sleep(0.3)
    assert len(bodies) == 1


class Tokens:
    """A server with tokens as TorchServe's: one that is renewed ends the one before."""

    def __init__(self, folder: Path) -> None:
        self.keys = Keys(folder / KEY_FILE)
        self.made = dict.fromkeys(("inference", "management", "API"), 0)
        self.expired = set[str]()
        self.lock = threading.Lock()
        self._write()

    def _write(self) -> None:
        content = {kind: {"key": f"{kind}-{number}"} for kind, number in self.made.items()}
        self.keys.file.write_text(json.dumps(content))

    def answer(self, path: str, token: str) -> int:
        kind = "API" if path.startswith("/token") else "inference"
        with self.lock:
            if token != f"Bearer {kind}-{self.made[kind]}" or kind in self.expired:
                return 401
            if kind == "API":
                renewed = path.rpartition("=")[2]
                self.made[renewed] += 1
                self.expired.discard(renewed)
                self._write()
        return 200

    @contextmanager
    def serving(self) -> Iterator[str]:
        tokens = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def do_GET(self) -> None:
                self.send_response(tokens.answer(self.path, self.headers["authorization"]))
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                return

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


def test_a_token_that_another_client_has_renewed_is_taken_and_not_ended(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    with tokens.serving() as url:
        late = Client(url, keys=tokens.keys, management_url=url, token="inference-0", retries=0)
        tokens.expired.add("inference")
        assert Client(url, keys=tokens.keys, management_url=url, retries=0).predict() == {}
        assert late.predict() == {}
        assert tokens.made["inference"] == 1
        tokens.expired.add("inference")
        assert late.predict() == {}  # now it is the first to see it
        assert tokens.made["inference"] == 2


def test_of_clients_that_see_the_end_of_a_token_at_once_one_renews_it(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    with tokens.serving() as url:
        clients = [Client(url, keys=tokens.keys, management_url=url, retries=0) for _ in range(8)]
        for _ in range(5):
            tokens.expired.add("inference")
            barrier = threading.Barrier(len(clients))

            def ask(client: Client, barrier: threading.Barrier = barrier) -> object:
                barrier.wait()
                return client.predict()

            with ThreadPoolExecutor(len(clients)) as threads:
                assert list(threads.map(ask, clients)) == [{}] * len(clients)
    assert tokens.made["inference"] == 5


def test_no_server_is_said_in_one_sentence() -> None:
    with answering() as (url, _):
        pass
    with pytest.raises(ServerError, match="no answer from"):
        Client(url, retries=1).predict(b"picture")


def test_a_form_names_no_file() -> None:
    with answering(200) as (url, bodies):
        Client(url, token="secret").explain(b"picture")
    assert b'filename="image"' in bodies[0]
    assert b"secret" not in bodies[0]


ROW = {"difference": 1.0, "png": "iVBORw=="}
MAPS: dict[str, Any] = {
    "completeness": "in the limit of n_steps",
    "note": "a note",
    "maps": [
        {**ROW, "name": "x", "logit": 1.5, "map_sum": 0.2, "residual": -0.8, "truncated": False},
        {**ROW, "name": "y", "logit": 2.5, "map_sum": 0.99, "residual": -0.01, "truncated": True},
    ],
}


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(Path(__file__).parents[2])
    (tmp_path / "x-ray.png").write_bytes(b"picture")
    return tmp_path / "x-ray.png"


def test_explain_writes_every_map_and_says_what_its_sum_misses(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {}

    def answer(self: Client, image: bytes, **fields: object) -> object:
        asked.update(fields, image=image)
        return copy.deepcopy(MAPS)

    monkeypatch.setattr(Client, "explain", answer)
    method = '{"name": "integrated_gradients", "n_steps": 7}'
    target = picture.with_name("map.png")
    arguments = ["explain", str(picture), "--prompt", "x", "--method", method, "--output", str(target), "name=other"]
    assert main(arguments) == 0
    assert asked == {"image": b"picture", "output": "png", "prompts": ["x"], "method": json.loads(method)}
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] == [str(picture.with_name(f"map.{i}.png")) for i in range(2)]
    assert "logit +1.500, map sums to +0.200 of +1.000  x" in err
    assert "logit +2.500, map sums to +0.990 of +1.000, too long: only its beginning is read  y" in err
    assert "more than 10 % off" in err
    complete = {**MAPS, "maps": MAPS["maps"][1:]}
    monkeypatch.setattr(Client, "explain", lambda *_, **__: copy.deepcopy(complete))
    assert main(arguments) == 0
    assert "more than 10 % off" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "no/such/folder/map.png"], "folder 'no/such/folder' does not exist"),
        (["--method", "{name"], "is no JSON"),
        (["--token-file", "no-such-file"], "cannot be opened"),
        (["server.prot=1"], "prot"),
    ],
)
def test_wrong_use_of_explain_is_said_in_one_line(
    picture: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(picture), *options]) == 2
    out, err = capsys.readouterr()
    assert message in json.loads(out)["error"]
    assert err.count("\n") == 1


def test_what_is_no_setting_is_refused(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(picture), "--prompt", "x", "stray"])
    assert ended.value.code == 2
    assert "stray" in capsys.readouterr().err
