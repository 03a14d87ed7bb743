import random
import tarfile
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapstack.errors import InputError
from mapstack.store import Store, StoreWriter, member_name, open_store_for_writing, verify

NASTY = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".",
    "..",
    "",
    " ",
    "\0",
    "a\nb",
    "a\r\nb",
    "%41",
    "%2E",
    "%empty",
]
NASTY += [
    "-rf",
    "~",
    "$HOME",
    "a.b",
    "a%2Eb",
    "é",
    "e\u0301",
    "\udc80",
    "\udcc3\udca9",
    "\U0001f600",
    "CON",
    "__x__",
    "*?",
]
NASTY += ["1.2.840.113619.2.55", "x" * 160, "x" * 161, "X" * 161, "." * 300, "é" * 5000, "%sha256-" + "0" * 64]
keys = st.one_of(st.text(max_size=12), st.text("./\\%\0\n-_aA", max_size=6), st.text("aé.", min_size=50, max_size=300))


def hostile_keys(n_keys: int) -> list[str]:
    """Short strings over an alphabet chosen to make a careless map fold two of them into one."""
    rng = random.Random(0)
    alphabet = "aA%2Ee.5/\\\0\n\r -_~é\u0301\udc80\u202e"
    made = dict.fromkeys(NASTY)
    while len(made) < n_keys:
        length = rng.choice([1, 2, 3, 4, 5, 8, 40, 300])
        made["".join(rng.choice(alphabet) for _ in range(length))] = None
    return list(made)


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


def test_r4_two_thousand_hostile_keys_keep_apart():
    hostile = hostile_keys(2000)
    assert len({member_name(key) for key in hostile}) == len(hostile) == 2000


def test_r4_two_thousand_hostile_keys_are_stored_and_read_back(tmp_path: Path, manifest, monkeypatch):
    folder = tmp_path / "outer" / "store"
    hostile = hostile_keys(2000)
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        for index, key in enumerate(hostile):
            writer.write(key, {}, {"index": index})
    store = Store(folder)
    assert store.keys() == hostile
    assert [store.read(key).info["index"] for key in hostile] == list(range(2000))
    assert verify(folder).n_done == 2000
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder] == []
    with tarfile.open(next(folder.glob("*.tar"))) as tar:
        assert tar.getnames() == [f"{member_name(key)}.json" for key in hostile]


def test_a_high_surrogate_is_refused_because_json_would_join_it_to_another():
    with pytest.raises(InputError, match="holds a high surrogate; a key is valid Unicode"):
        member_name("\ud83d\ude00")
