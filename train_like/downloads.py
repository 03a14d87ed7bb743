"""A file from a server or from this machine, whole and as expected, or an error that says what to do.

A download that breaks off is taken up where it stopped, within a run and by the next one, as long as the server still
has the same file. A file gets its name when it is complete; until then it ends in `.partial`.
"""

import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from mapstack.errors import CheckpointError
from train_like.errors import StoppedError

_CHUNK_BYTES = 2**20
_AGENT = "mapstack"
_RETRIED = frozenset((408, 425, 429))  # and all from 500 on: the server may answer the next time
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Fetched:
    """A file that is here now.

    Attributes:
        path: Where.
        sha256: Of its bytes, in hexadecimal.
        n_bytes: How many there are.
    """

    path: Path
    sha256: str
    n_bytes: int


class _BrokenOffError(Exception):
    """A transfer ended early; another try may go on."""


class Download:
    """One file from one place.

    Args:
        source: `http(s)://...`, or a path on this machine.
        folder: Where downloads are kept.
        sha256: What its bytes must have; None for anything.
        timeout_s: How long the server may stay silent [s].
        n_tries: Tries in a row that bring not one byte, before it is given up.
        pause_s: Before the second try; doubled each time [s].
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        sha256: str | None = None,
        timeout_s: float = 60.0,
        n_tries: int = 8,
        pause_s: float = 1.0,
    ) -> None:
        self._source = source
        self._sha256 = sha256
        self._timeout_s = timeout_s
        self._n_tries = n_tries
        self._pause_s = pause_s
        name = os.path.basename(unquote(urlsplit(source).path)) or "download"
        # Two servers may have a file of one name.
        self._path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"
        self._partial = folder / f"{self._path.name}.partial"
        self._about = folder / f"{self._path.name}.json"
        self._total: int | None = None

    def fetch(self) -> Fetched:
        """Bring the file, unless it is here.

        Raises:
            CheckpointError: The path is wrong, the server refuses or sends something else, or the sha256 differs.
            StoppedError: The network or the disk gave up; what came is kept.
        """
        if urlsplit(self._source).scheme not in ("http", "https"):
            return self._take_local()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            fetched = self._described(self._path)
            if fetched.sha256 == self._read_about().get("sha256") and self._sha256 in (None, fetched.sha256):
                return fetched
            self._path.unlink()  # changed on disk since, or another one is wanted by now
        self._transfer()
        fetched = self._checked(self._partial)
        self._partial.replace(self._path)
        self._write_about(sha256=fetched.sha256, bytes=fetched.n_bytes)
        return Fetched(self._path, fetched.sha256, fetched.n_bytes)

    def discard(self) -> None:
        """Remove a download that turned out to be of no use, so that the next run fetches it again."""
        if urlsplit(self._source).scheme in ("http", "https"):
            for path in (self._path, self._partial, self._about):
                path.unlink(missing_ok=True)

    def _take_local(self) -> Fetched:
        path = Path(self._source.removeprefix("file://"))
        if not path.is_file():
            raise CheckpointError(
                f"'{self._source}' is neither a file nor an http(s) URL; give one of them; behind a proxy, fetch the "
                "file in another way and give its path."
            )
        fetched = self._described(path)
        self._require_pinned(fetched)
        return fetched

    def _checked(self, path: Path) -> Fetched:
        fetched = self._described(path)
        try:
            self._require_pinned(fetched)
        except CheckpointError:
            self.discard()
            raise
        return fetched

    def _require_pinned(self, fetched: Fetched) -> None:
        if self._sha256 not in (None, fetched.sha256):
            raise CheckpointError(
                f"'{self._source}' ({fetched.n_bytes} bytes) has the sha256 {fetched.sha256}, and {self._sha256} is "
                "pinned; the file is damaged or another one; fetch it again, or pin what you trust."
            )

    @staticmethod
    def _described(path: Path) -> Fetched:
        with path.open("rb") as file:
            return Fetched(path, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)

    def _transfer(self) -> None:
        """Bring the whole file to `.partial`, in as many requests as it takes."""
        n_failed = 0
        while True:
            before = self._n_here()
            try:
                self._request()
                return
            except _BrokenOffError as error:
                n_failed = 0 if self._n_here() > before else n_failed + 1
                if n_failed >= self._n_tries:
                    raise StoppedError(
                        f"'{self._source}' could not be fetched ({error}; {n_failed} tries brought nothing, "
                        f"{self._n_here()} bytes are kept); run the same command to go on, or fetch the file in "
                        "another way and give its path."
                    ) from None
                if n_failed:
                    time.sleep(min(self._pause_s * 2 ** (n_failed - 1), _LONGEST_PAUSE_S))
            except OSError as error:
                raise StoppedError(
                    f"'{self._partial}' could not be written ({error.strerror or type(error).__name__}); free or mend "
                    "the disk, then run the same command to go on."
                ) from None

    def _n_here(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _request(self) -> None:
        about = self._read_about()
        start = self._n_here() if about.get("validator") else 0
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": str(about["validator"])}
        try:
            response = urllib.request.urlopen(  # noqa: S310 - the scheme was looked at
                urllib.request.Request(self._source, headers=headers),  # noqa: S310
                timeout=self._timeout_s,
            )
        except urllib.error.HTTPError as error:
            with error:
                self._judge_status(error.code, start, about)
            return
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise _BrokenOffError(_reason(error)) from None
        with response:
            self._receive(response, start)

    def _judge_status(self, status: int, start: int, about: dict[str, Any]) -> None:
        """Say what an answer means that is no file."""
        if status == 416 and start:
            if start == about.get("total"):
                return  # it broke off behind the last byte
            self._partial.unlink()
            raise _BrokenOffError("the server has another file by now")
        if status in _RETRIED or status >= 500:
            raise _BrokenOffError(f"the server answers {status} {_phrase(status)}")
        raise CheckpointError(
            f"the server answers {status} {_phrase(status)} for '{self._source}'; it does not give the file; check the "
            "URL and whether it asks for a log-in, or give the path of a file."
        )

    def _receive(self, response: Any, start: int) -> None:
        self._require_file(response)
        start = start if response.status == 206 and _range_start(response.headers) == start else 0
        length = response.headers.get("Content-Length")
        self._total = start + int(length) if length is not None and length.isdigit() else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator is not None and validator.startswith("W/"):
            validator = None  # such a one does not promise the same bytes
        self._write_about(validator=validator, total=self._total)
        self._require_room(start)
        self._copy(response, start)
        if self._total is not None and self._n_here() != self._total:
            raise _BrokenOffError(f"the transfer ended after {self._n_here()} of {self._total} bytes")

    def _require_file(self, response: Any) -> None:
        if self._source.startswith("https:") and not response.geturl().startswith("https:"):
            raise CheckpointError(
                f"'{self._source}' leads to an address without https; anybody between could change the file; check the "
                "URL."
            )
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError(
                f"'{self._source}' answers with a web page and not with a file; a proxy or a log-in stands between; "
                "fetch the file in another way and give its path."
            )

    def _require_room(self, start: int) -> None:
        n_free = shutil.disk_usage(self._partial.parent).free
        if self._total is not None and self._total - start > n_free:
            raise StoppedError(
                f"'{self._source}' has {self._total} bytes and the disk of '{self._partial.parent}' {n_free} free; "
                "free it, or set cache to another folder."
            )

    def _copy(self, response: Any, start: int) -> None:
        with (
            self._partial.open("r+b" if start else "wb") as file,
            tqdm(
                total=self._total,
                initial=start,
                desc=self._path.name[9:],
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            ) as bar,
        ):
            file.seek(start)
            file.truncate()
            while True:
                try:
                    chunk = response.read(_CHUNK_BYTES)
                except http.client.IncompleteRead as error:
                    file.write(error.partial)
                    raise _BrokenOffError("the transfer ended early") from None
                except (http.client.HTTPException, OSError) as error:
                    raise _BrokenOffError(_reason(error)) from None
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())

    def _read_about(self) -> dict[str, Any]:
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) and about.get("source") == self._source else {}

    def _write_about(self, **facts: Any) -> None:
        self._about.write_text(json.dumps({"source": self._source, **facts}) + "\n", encoding="utf-8")


def _range_start(headers: Message) -> int | None:
    """Read where a part begins, of `Content-Range: bytes 5-9/10`."""
    unit, _, rest = str(headers.get("Content-Range", "")).partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "")


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "the server stayed silent"
    return " ".join(str(inner).split())[:120] or type(inner).__name__
