"""Downloads from a server that breaks off, refuses, falls silent, changes its file or sends another."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mapstack.errors import CheckpointError
from tests.train_like.servers import Served, serving
from train_like.downloads import Download
from train_like.errors import StoppedError

FILE = np.random.default_rng(0).bytes(5_000_003)
SHA256 = hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def server() -> Iterator[Served]:
    with serving({"/a/model.zip": FILE}) as served:
        yield served


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback is asked directly, whatever this machine's proxy is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def download(server: Served, folder: Path, **options: object) -> Download:
    settings = {"timeout_s": 5.0, "n_tries": 3, "pause_s": 0.001, **options}
    return Download(server.url("/a/model.zip"), folder, **settings)  # type: ignore[arg-type]


def partial(folder: Path) -> Path:
    (path,) = folder.glob("*.partial")
    return path


def test_a_file_is_fetched_once(server: Served, tmp_path: Path) -> None:
    fetched = download(server, tmp_path, sha256=SHA256).fetch()
    assert fetched.path.read_bytes() == FILE
    assert (fetched.sha256, fetched.n_bytes) == (SHA256, len(FILE))
    assert fetched.path.name.endswith("-model.zip")
    assert download(server, tmp_path).fetch() == fetched
    assert len(server.requests) == 1


def test_a_transfer_that_breaks_off_goes_on_where_it_was(server: Served, tmp_path: Path) -> None:
    server.faults = [("cut", 1_000_000), ("cut", 1), ("cut", 2_000_000), ("cut", 0), ("status", 503)]
    assert download(server, tmp_path).fetch().sha256 == SHA256
    assert server.n_sent == len(FILE)
    assert server.ranges == [None, *(f"bytes={n}-" for n in (1_000_000, 1_000_001, 3_000_001, 3_000_001, 3_000_001))]


def test_the_next_run_goes_on_where_this_one_gave_up(server: Served, tmp_path: Path) -> None:
    server.faults = [("cut", 3_000_000), *[("cut", 0)] * 3]
    with pytest.raises(StoppedError, match=r"3 tries brought nothing, 3000000 bytes are kept\); run the same command"):
        download(server, tmp_path).fetch()
    assert partial(tmp_path).read_bytes() == FILE[:3_000_000]
    assert download(server, tmp_path).fetch().sha256 == SHA256
    assert server.n_sent == len(FILE)


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server: Served, tmp_path: Path) -> None:
    server.faults = [("cut", 3_000_000), *[("cut", 0)] * 3]
    with pytest.raises(StoppedError):
        download(server, tmp_path).fetch()
    server.content["/a/model.zip"] = FILE[::-1]
    assert download(server, tmp_path).fetch().path.read_bytes() == FILE[::-1]


def test_a_file_that_became_shorter_is_fetched_from_the_start(server: Served, tmp_path: Path) -> None:
    server.faults = [("cut", 3_000_000), *[("cut", 0)] * 3]
    with pytest.raises(StoppedError):
        download(server, tmp_path).fetch()
    server.content["/a/model.zip"] = FILE[:1_000]
    assert download(server, tmp_path).fetch().path.read_bytes() == FILE[:1_000]


@pytest.mark.parametrize("options", [{"has_etag": False}, {"does_ranges": False}])
def test_a_server_that_cannot_go_on_is_asked_for_the_whole(options: dict[str, bool], tmp_path: Path) -> None:
    with serving({"/a/model.zip": FILE}, **options) as server:
        server.faults = [("cut", 3_000_000)]
        assert download(server, tmp_path).fetch().path.read_bytes() == FILE


def test_a_transfer_that_broke_off_behind_the_last_byte_is_whole(server: Served, tmp_path: Path) -> None:
    server.faults = [("cut", len(FILE) - 1), ("cut", 0), ("cut", 0), ("cut", 0)]
    with pytest.raises(StoppedError):
        download(server, tmp_path).fetch()
    path = partial(tmp_path)
    path.write_bytes(FILE)
    assert download(server, tmp_path, sha256=SHA256).fetch().path.read_bytes() == FILE


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server: Served, tmp_path: Path, status: int) -> None:
    server.faults = [("status", status)]
    with pytest.raises(CheckpointError, match=f"the server answers {status} .*; it does not give the file"):
        download(server, tmp_path).fetch()
    assert len(server.requests) == 1
    assert download(server, tmp_path).fetch().sha256 == SHA256


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(server: Served, tmp_path: Path, status: int) -> None:
    server.faults = [("status", status)] * 2
    assert download(server, tmp_path).fetch().sha256 == SHA256
    server.faults = [("status", status)] * 3
    with pytest.raises(StoppedError, match=f"the server answers {status}"):
        download(server, tmp_path / "other").fetch()


def test_a_server_that_falls_silent_is_left(server: Served, tmp_path: Path) -> None:
    server.faults = [("silent", 1.0)] * 3
    with pytest.raises(StoppedError, match=r"the server stayed silent; 3 tries"):
        download(server, tmp_path, timeout_s=0.2).fetch()


def test_a_server_that_is_not_there_is_named(server: Served, tmp_path: Path) -> None:
    download(server, tmp_path).fetch()
    with serving({}) as gone:
        pass
    with pytest.raises(StoppedError, match=r"could not be fetched \(.*refused"):
        Download(gone.url("/x"), tmp_path, n_tries=2, pause_s=0.001).fetch()
    with pytest.raises(StoppedError, match="could not be fetched"):
        Download("http://name.invalid/x", tmp_path, n_tries=1, pause_s=0.001).fetch()


def test_a_log_in_page_is_no_file(server: Served, tmp_path: Path) -> None:
    server.faults = [("page",)]
    with pytest.raises(CheckpointError, match="answers with a web page and not with a file; a proxy or a log-in"):
        download(server, tmp_path).fetch()
    assert download(server, tmp_path).fetch().sha256 == SHA256


def test_a_damaged_file_is_refused_by_its_pinned_sha256_and_not_kept(server: Served, tmp_path: Path) -> None:
    server.faults = [("flip",)]
    with pytest.raises(CheckpointError, match=f"has the sha256 .*, and {SHA256} is pinned"):
        download(server, tmp_path, sha256=SHA256).fetch()
    assert list(tmp_path.iterdir()) == []
    assert download(server, tmp_path, sha256=SHA256).fetch().sha256 == SHA256


def test_what_changed_in_the_cache_is_fetched_again(server: Served, tmp_path: Path) -> None:
    path = download(server, tmp_path).fetch().path
    path.write_bytes(FILE[:-1])
    assert download(server, tmp_path).fetch().path.read_bytes() == FILE
    assert len(server.requests) == 2


def test_two_servers_may_have_files_of_one_name(tmp_path: Path) -> None:
    with serving({"/a/model.zip": b"a", "/b/model.zip": b"b"}) as server:
        paths = [Download(server.url(f"/{name}/model.zip"), tmp_path).fetch().path for name in "ab"]
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]


def test_a_file_of_this_machine_is_taken_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(FILE)
    for source in (str(path), f"file://{path}"):
        assert Download(source, tmp_path / "cache", sha256=SHA256).fetch().path == path
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CheckpointError, match="is pinned"):
        Download(str(path), tmp_path, sha256="0" * 64).fetch()
    for source in ("nowhere.zip", "ftp://127.0.0.1/model.zip", str(tmp_path)):
        with pytest.raises(CheckpointError, match="is neither a file nor an http"):
            Download(source, tmp_path).fetch()
    Download(str(path), tmp_path).discard()
    assert path.exists()
