"""The one form in which the endpoint says no: a code for programs, a sentence for people, an HTTP status.

A sentence never repeats what a request holds, not even the name of an unknown field: any part of a request may be a
patient's name put in the wrong place, and error answers end up in logs.
"""

from collections.abc import Sequence

from mapstack.errors import ConfigError, ImageError, InputError, MapstackError, SpanError, StoreError, unknown_name

STATUS = {
    "bad_encoding": 400,
    "bad_json": 400,
    "bad_request": 400,
    "unknown_field": 400,
    "bad_value": 400,
    "bad_base64": 400,
    "missing_image": 400,
    "missing_prompts": 400,
    "too_many_prompts": 400,
    "too_many_instances": 400,
    "bad_prompt": 400,
    "unknown_method": 400,
    "unknown_class": 400,
    "unknown_image": 404,
    "unknown_key": 404,
    "not_acceptable": 406,
    "image_too_large": 413,
    "bad_image": 422,
    "bad_route": 422,
    "too_costly": 422,
    "outside_span": 422,
    "answer_too_large": 422,
    "no_picture": 422,
    "not_finite": 422,
    "internal_error": 500,
    "bad_store": 500,
}
"""HTTP status of every code that an answer can carry."""


class Refusal(MapstackError):
    """A request that gets no answer.

    Attributes:
        code: A key of `STATUS`.
        field: The field of the request that is to blame, by our name for it; None where it is none.
    """

    def __init__(self, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    def describe(self) -> dict[str, object]:
        """Return the body of the answer."""
        return {"error": {"code": self.code, "field": self.field, "message": str(self)}}


def refusal_of(error: Exception) -> Refusal:
    """Return what a request is told of an error that its computation raised.

    Errors of other kinds than ours are not quoted: their texts may hold anything.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ImageError):
        return Refusal("bad_image", str(error), field="image")
    if isinstance(error, SpanError):
        return Refusal("outside_span", str(error), field="prompts")
    if isinstance(error, StoreError):
        return Refusal("bad_store", "the stack store cannot be read; it must be whole; see `train_like verify`.")
    if isinstance(error, InputError | ConfigError):
        return Refusal("bad_request", str(error))
    return Refusal(
        "internal_error",
        f"the server failed ({type(error).__name__}); this is no fault of the request; try again or tell its keeper.",
    )


def unknown_choice(what: str, written: object, choices: Sequence[str]) -> str:
    """Return the sentence for a value that is none of the choices, without the value itself.

    Example:
        >>> unknown_choice("method", "gradiant", ["gradient", "occlusion"])
        "method is unknown; choose one of gradient, occlusion. Did you mean 'gradient'?"
    """
    # The nearest name is looked for among short texts only: the search takes time with the square of the length.
    told = unknown_name(what, written if isinstance(written, str) and len(written) <= 40 else "", choices)
    return f"{what} is unknown;{told.split(' is unknown;', 1)[1]}"
