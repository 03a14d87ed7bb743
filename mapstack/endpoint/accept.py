"""What a client takes: our three media types in its Accept header, and what an answer then holds.

Source:
    RFC 9110, 12.5.1: Accept.
"""

from mapstack.endpoint.refusals import Refusal

JSON_TYPE, PNG_TYPE, NPY_TYPE = "application/json", "image/png", "application/x-npy"
_OUTPUTS = {JSON_TYPE: "json", PNG_TYPE: "png", NPY_TYPE: "npy"}
_ANY = ("*/*", "application/*")


def choose_output(accept: str, asked: tuple[str, ...] | None) -> tuple[tuple[str, ...], str]:
    """Choose what an answer holds, and as what it is sent.

    A type of ours that the header names is the output, where the request does not say another; JSON holds them all.
    Types that are not ours say nothing.

    Args:
        accept: The header.
        asked: The field `output`; None where the request leaves it out.

    Returns:
        Outputs, and the media type of the body.

    Raises:
        Refusal: The header leaves out every type that the answer could have.

    Example:
        >>> choose_output("image/png, */*;q=0.1", None)
        (('png',), 'image/png')
        >>> choose_output("image/png;q=0, */*", ("png",))
        (('png',), 'application/json')
    """
    weights = _weights(accept)
    named = sorted((kind for kind in weights if kind in _OUTPUTS and weights[kind]), key=lambda kind: -weights[kind])
    for kind in named:
        if asked is None or kind == JSON_TYPE or _OUTPUTS[kind] in asked:
            return asked or (_OUTPUTS[kind],), kind
    takes_any = any(weights.get(kind) for kind in _ANY)
    if weights.get(JSON_TYPE) == 0 or (named and not takes_any):
        raise Refusal(
            "not_acceptable",
            "the Accept header leaves out every type that this answer could have; JSON holds all outputs, and a bare "
            "image/png or application/x-npy the output of that name; accept one of them.",
            field="output",
        )
    return asked or ("json",), JSON_TYPE


def _weights(accept: str) -> dict[str, float]:
    """Read the weight of each media type, in the header's order; what is malformed is passed over."""
    weights: dict[str, float] = {}
    for element in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in element.split(";"))
        written = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        try:
            weight = float(written)
        except ValueError:
            continue
        if 0 <= weight <= 1:
            weights.setdefault(kind, weight)
    return weights
