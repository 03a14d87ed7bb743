"""The map from the key of a sample to the name of its members in the tar.

A key comes from somebody else's shard: it may hold dots (WebDataset would split it there), slashes, newlines or
thousands of characters. The name is safe in a tar, a file system and WebDataset, and two keys never share one.
"""

import hashlib
import string

from mapstack.errors import InputError

MAX_NAME_BYTES = 160
_PLAIN = frozenset((string.ascii_letters + string.digits + "_-").encode())
_EMPTY = "%empty"


def member_name(key: str) -> str:
    """Turn a key into its member name: the key itself when it is made of letters, digits, `_` and `-` only.

    Every other byte of its UTF-8 form is written `%XX`, as in a URL, so that `urllib.parse.unquote` gives the key back.
    A name that would pass 160 bytes is `%sha256-` and the hash of the key instead (the key then stands in the sample's
    json and in the journal), and the empty key is `%empty`: neither can be the percent form of a key.

    Raises:
        InputError: The key is no text that JSON can carry.

    Example:
        >>> member_name("patient64541_study1")
        'patient64541_study1'
        >>> member_name("1.2.840/a")
        '1%2E2%2E840%2Fa'
    """
    check_key(key)
    # surrogatepass, because a tar name that is not UTF-8 arrives with lone surrogates, and each must stay distinct.
    raw = key.encode("utf-8", "surrogatepass")
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    if len(name) > MAX_NAME_BYTES:
        return f"%sha256-{hashlib.sha256(raw).hexdigest()}"
    return name or _EMPTY


def check_key(key: str) -> None:
    """Refuse a key that JSON would not give back as it was.

    JSON writes a high surrogate followed by a low one as the same escapes as the character they stand for, so that two
    keys would be read back as one. Names of files never hold a high surrogate.

    Raises:
        InputError: The key is no string, or holds a high surrogate (U+D800 to U+DBFF).
    """
    if not isinstance(key, str):
        raise InputError(f"a key of type {type(key).__name__} was given; a key is a string; convert it before storing.")
    if any("\ud800" <= character <= "\udbff" for character in key):
        raise InputError(
            f"key {ascii(key)} holds a high surrogate; a key is valid Unicode, or bytes decoded with surrogateescape; "
            "rename the sample."
        )
