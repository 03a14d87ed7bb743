"""Keys of samples as an attacker, or an unlucky archive, would choose them."""

import random

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


def hostile_keys(n_keys: int) -> list[str]:
    """Short strings over an alphabet chosen to make a careless map fold two of them into one."""
    rng = random.Random(0)
    alphabet = "aA%2Ee.5/\\\0\n\r -_~é\u0301\udc80\u202e"
    made = dict.fromkeys(NASTY)
    while len(made) < n_keys:
        length = rng.choice([1, 2, 3, 4, 5, 8, 40, 300])
        made["".join(rng.choice(alphabet) for _ in range(length))] = None
    return list(made)
