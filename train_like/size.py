"""How many bytes a record will take, known before the first is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapstack.methods import Windows

_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_FLOAT16_ERROR = 2.0**-11  # float16 keeps every map to this share, so that lowrank needs float32 below it only
_MEMBER_BYTES = 512 + 128 + 511  # header of the tar, header of the array, padding
_N_MEMBERS = 5
_JSON_BYTES = 4096  # names and geometry
_NUMBER_BYTES = 25  # one number in the json


@dataclass(frozen=True, slots=True)
class RecordSize:
    """The size of a record.

    Attributes:
        n_bytes: The most that one takes [bytes].
        is_exact: Whether every record takes that, but for some kilobytes; otherwise the picture decides.
    """

    n_bytes: int
    is_exact: bool


def estimate_record(manifest: Mapping[str, Any], n_texts: int) -> RecordSize:
    """Return the size of the records of a store.

    Args:
        manifest: See `describe_store`.
        n_texts: How many logits each record holds.
    """
    identity = manifest["identity"]
    embed_dim, centre = manifest["embed_dim"], manifest["basis_centre"]
    n_rows = embed_dim if centre is None else len(centre)
    if identity["form"] == "occlusion":
        method = identity["method"]
        windows = Windows(manifest["image_size"], method["sliding_window_shapes"], method["strides"])
        n_bytes = 4 * len(windows) * embed_dim
    else:
        n_pixels = identity["map_size"] ** 2
        # Each row has a scale, and its convergence_delta in the json.
        n_bytes = n_rows * (_bytes_per_number(identity) * n_pixels + 4 + _NUMBER_BYTES)
    n_bytes += 2 * 4 * embed_dim  # the embeddings of the picture and of the baseline
    is_compressed = identity["compress"] != "none"
    if is_compressed:
        n_bytes += n_bytes // 128  # what cannot be compressed grows by less
    n_bytes += _N_MEMBERS * _MEMBER_BYTES + _JSON_BYTES + _NUMBER_BYTES * n_texts
    return RecordSize(n_bytes, is_exact=not is_compressed and identity["codec"] != "lowrank")


def _bytes_per_number(identity: Mapping[str, Any]) -> int:
    if identity["codec"] == "lowrank":  # the dense form that it may fall back to
        return _BYTES["float16" if identity["max_error"] >= _FLOAT16_ERROR else "float32"]
    return _BYTES[identity["codec"]]
