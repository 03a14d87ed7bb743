"""Every random draw of mapstack, derived from the seed and the picture itself."""

import hashlib

import torch


def generator(seed: int, sha256: str, purpose: str) -> torch.Generator:
    """Start the random numbers of one picture and one purpose.

    The same picture gets the same draws offline and online, whatever its batch-mates, its rank or its place in the
    run, because nothing but the three arguments enters. The draws are made on the CPU: a GPU would give others.

    Args:
        seed: The run's seed.
        sha256: Hexadecimal digest of the picture's bytes, `Picture.sha256`.
        purpose: What the draws are for, such as "baseline/noise", so that two uses never share their numbers.

    Example:
        >>> draw = lambda *key: torch.rand(1, generator=generator(*key)).item()
        >>> draw(0, "ab", "noise") == draw(0, "ab", "noise")
        True
        >>> len({draw(0, "ab", "noise"), draw(1, "ab", "noise"), draw(0, "cd", "noise"), draw(0, "ab", "path")})
        4
    """
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    key = f"{seed}:{len(sha256)}:{sha256}:{len(purpose)}:{purpose}"
    derived = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return torch.Generator(device="cpu").manual_seed(derived)
