import tarfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapstack.errors import InputError
from mapstack.store import Store, StoreWriter, member_name, open_store_for_writing, verify
from tests.store.hostile_keys import hostile_keys

keys = st.one_of(st.text(max_size=12), st.text("./\\%\0\n-_aA", max_size=6), st.text("aé.", min_size=50, max_size=300))


@pytest.mark.parametrize("key", ["a", "patient64541_study1_view1-frontal", "ABC", "x" * 160])
def test_an_ordinary_key_is_its_own_name(key: str):
    assert member_name(key) == key


@given(keys)
def test_a_name_is_safe_and_gives_its_key_back(key: str):
    name = member_name(key)
    assert 0 < len(name.encode()) <= 160
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-%")
    if not name.startswith(("%sha256-", "%empty")):
        assert urllib.parse.unquote(name, errors="surrogatepass") == key


@pytest.mark.fault("R4")
def test_hostile_keys_keep_apart(campaign: Callable[[int, int], int], figure: Callable[[str], None]):
    n_keys = campaign(2000, 20_000)
    hostile = hostile_keys(n_keys)
    assert len({member_name(key) for key in hostile}) == len(hostile) == n_keys
    figure(f"{n_keys} hostile keys have {n_keys} different member names")


@pytest.mark.fault("R4")
def test_hostile_keys_are_stored_and_read_back(
    tmp_path: Path, manifest, campaign: Callable[[int, int], int], figure: Callable[[str], None]
):
    folder = tmp_path / "outer" / "store"
    n_keys = campaign(2000, 20_000)
    hostile = hostile_keys(n_keys)
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        for index, key in enumerate(hostile):
            writer.write(key, {}, {"index": index})
    store = Store(folder)
    assert store.keys() == hostile
    assert [store.read(key).info["index"] for key in hostile] == list(range(n_keys))
    assert verify(folder).n_done == n_keys
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder] == []
    with tarfile.open(next(folder.glob("*.tar"))) as tar:
        assert tar.getnames() == [f"{member_name(key)}.json" for key in hostile]
    figure(f"{n_keys} hostile keys stored and read back, 0 files outside the store")


def test_a_high_surrogate_is_refused_because_json_would_join_it_to_another():
    with pytest.raises(InputError, match="holds a high surrogate; a key is valid Unicode"):
        member_name("\ud83d\ude00")
