"""How a command of `serve` fails, and the exit code of each way; the numbers are those of `train_like`."""

from mapstack.errors import MapstackError

DONE, WRONG_USE, STOPPED, TERMINATED = 0, 2, 4, 143


class ServerError(MapstackError, RuntimeError):
    """The server does not start, has died, or does not answer."""


class AnswerError(MapstackError, RuntimeError):
    """The server refused a request.

    Attributes:
        status: HTTP status.
        code: The machine-readable code of the answer; "" where the answer has none.
    """

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
