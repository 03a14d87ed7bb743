"""A small client: tokens, retries, one connection a call; nothing beyond the standard library."""

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from mapstack.errors import ConfigError
from serve.errors import AnswerError, ServerError
from serve.keys import KEY_FILE, Keys

if TYPE_CHECKING:
    from serve.config import ServeConfig  # it imports torch, which a client does without

_RETRIED = (429, 502, 503, 504)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
# TorchServe answers 400 to a token that is missing, wrong or too old; the proxy of docs/serving.md makes it 401.
_TOKEN_REFUSED = ("InvalidKeyException", "TokenAuthorization", "Token Authorization")


@dataclass(frozen=True)
class Reply:
    """What the server answered.

    Attributes:
        status: HTTP status.
        content_type: Of the body.
        body: As it came.
        headers: In lower case.
    """

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Return the body, read as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.body)


class Client:
    """Calls one model of one server.

    Args:
        url: Of the inference API.
        name: Of the model.
        token: For inference; None takes it from `keys`.
        keys: The server's tokens, where it runs on this host; then they are also renewed when they are too old.
        management_url: Of the management API.
        retries: How often a call is tried again that failed for a reason that may pass: no connection, 429, and 502,
            503, 504 of a server that is full or restarting. Not 500, which says that this request fails.
        timeout_s: For one try. A call that takes longer is not sent again: the server still computes the first.
    """

    def __init__(
        self,
        url: str,
        name: str = "medclip",
        *,
        token: str | None = None,
        keys: Keys | None = None,
        management_url: str | None = None,
        retries: int = 4,
        timeout_s: float = 600.0,
    ) -> None:
        self._url = url
        self._name = name
        self._token = token
        self._keys = keys
        self._management_url = management_url
        self._retries = retries
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, config: "ServeConfig", *, retries: int = 4, timeout_s: float | None = None) -> "Client":
        """Return a client of the server that `serve start` runs with a configuration, on this host.

        Args:
            config: Of packing and serving.
            retries: As of a client.
            timeout_s: As of a client; None for as long as the server lets a worker take.
        """
        server = config.server
        return cls(
            server.url("inference_port"),
            config.name,
            keys=Keys(Path(server.run_folder).absolute() / KEY_FILE),
            management_url=server.url("management_port"),
            retries=retries,
            timeout_s=float(server.response_timeout_s) if timeout_s is None else timeout_s,
        )

    def predict(self, image: bytes | None = None, **fields: Any) -> Any:
        """Return logits; `fields` are those of a request, such as `prompts`.

        Raises:
            AnswerError: The server refused.
            ServerError: It does not answer.
        """
        return self.call("predictions", image, fields).json()

    def explain(self, image: bytes | None = None, **fields: Any) -> Any:
        """Return maps and what is known of them; see `predict`."""
        return self.call("explanations", image, fields).json()

    def call(
        self, verb: str, image: bytes | None = None, fields: Mapping[str, Any] | None = None, accept: str = "*/*"
    ) -> Reply:
        """Send one request and return what comes, whatever its media type; see `predict`."""
        body, content_type = _form(image, fields or {})
        headers = {"content-type": content_type, "accept": accept}
        return self._try("POST", self._url, f"/{verb}/{self._name}", body, headers, "inference")

    def describe_model(self) -> Any:
        """Return what the management API says of the model: workers, queue."""
        return self._manage(f"/models/{self._name}").json()

    def renew_token(self, kind: str = "inference") -> None:
        """Have the server make a new token of a kind; the old one stops working.

        Raises:
            ConfigError: The server's tokens are not at hand.
        """
        self._manage(f"/token?type={kind}", "API")

    def _manage(self, path: str, kind: str = "management") -> Reply:
        if self._management_url is None:
            raise ConfigError("the management API is needed and its address unknown; give management_url.")
        return self._try("GET", self._management_url, path, b"", {}, kind)

    def _try(self, method: str, url: str, path: str, body: bytes, headers: Mapping[str, str], kind: str) -> Reply:
        token, is_renewed = self._token_of(kind), False
        reply = self._retry(method, url, path, body, _authorized(headers, token))
        while _is_token_refused(reply) and self._keys is not None and kind != "API" and not is_renewed:
            self._token = None  # one that was given is as old as the one that it is a copy of
            token, is_renewed = self._newer_token(self._keys, kind, token)
            reply = self._retry(method, url, path, body, _authorized(headers, token))
        return _checked(reply)

    def _newer_token(self, keys: Keys, kind: str, refused: str | None) -> tuple[str, bool]:
        """Return a token in place of a refused one, and whether it had to be made: another client may have made it."""
        with keys.held():
            is_same = keys.read(kind) == refused
            if is_same:
                self.renew_token(kind)
            return keys.read(kind), is_same

    def _retry(self, method: str, url: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a call until there is an answer that will not change by itself, or the retries are used up."""
        wait_s = _FIRST_WAIT_S
        for left in range(self._retries, -1, -1):
            try:
                reply = self._send(method, url, path, body, headers)
            except TimeoutError:
                raise ServerError(
                    f"no answer from {url} within {self._timeout_s:g} s; it is not asked again, since it may still be "
                    "at work on this; ask for less, or give it longer."
                ) from None
            except (OSError, http.client.HTTPException) as error:
                if not left:
                    raise ServerError(
                        f"no answer from {url} ({type(error).__name__}); is it running? See `python -m serve start`."
                    ) from None
            else:
                if reply.status not in _RETRIED or not left:
                    return reply
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise RuntimeError("a call ended without an answer.")

    def _token_of(self, kind: str) -> str | None:
        if self._keys is not None and (self._token is None or kind != "inference"):
            return self._keys.read(kind)
        return self._token

    def _send(self, method: str, url: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or parts.hostname is None:
            raise ConfigError(f"url '{url}' is wrong; it is http:// or https:// with a host; correct it.")
        connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=self._timeout_s)
        try:
            connection.request(method, parts.path.rstrip("/") + path, body or None, dict(headers))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, received.get("content-type", ""), content, received)


def _authorized(headers: Mapping[str, str], token: str | None) -> dict[str, str]:
    return dict(headers) if token is None else {**headers, "authorization": f"Bearer {token}"}


def _form(image: bytes | None, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the body and its type: JSON, or a form where a picture goes with it, which is shorter than base64."""
    text = json.dumps(dict(fields)).encode("ascii")
    if image is None:
        return text, "application/json"
    boundary = uuid4().hex
    # No name of a file: it could be a patient's.
    parts = [
        ("image", 'filename="image"', "application/octet-stream", image),
        ("request", None, "application/json", text),
    ]
    return _multipart(parts, boundary), f"multipart/form-data; boundary={boundary}"


def _multipart(parts: Sequence[tuple[str, str | None, str, bytes]], boundary: str) -> bytes:
    chunks = []
    for name, extra, kind, content in parts:
        disposition = f'form-data; name="{name}"' + ("" if extra is None else f"; {extra}")
        head = f"--{boundary}\r\ncontent-disposition: {disposition}\r\ncontent-type: {kind}\r\n\r\n"
        chunks.append(head.encode("ascii") + content + b"\r\n")
    return b"".join(chunks) + f"--{boundary}--\r\n".encode("ascii")


def _is_token_refused(reply: Reply) -> bool:
    return reply.status == 401 or (
        reply.status in (400, 403) and any(word.encode() in reply.body for word in _TOKEN_REFUSED)
    )


def _checked(reply: Reply) -> Reply:
    if reply.status < 300:
        return reply
    try:
        content = reply.json()
        error = content.get("error", {})
        code, message = str(error.get("code", "")), str(error.get("message", content.get("message", "")))
    except (ValueError, AttributeError):
        code, message = "", ""
    raise AnswerError(
        f"the server answered {reply.status}{f' ({code})' if code else ''}: {message or 'no reason given'}",
        status=reply.status,
        code=code,
    )
