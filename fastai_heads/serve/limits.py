"""What a service refuses to take, so that no request can bring it down."""

import dataclasses

from fastai_heads.errors import HeadsError

__all__ = ["Limits", "Refused"]


@dataclasses.dataclass(frozen=True)
class Limits:
    "The most that one request may hold, and how requests are joined. Raises `HeadsError` for a limit below its least."

    body: int = 32 * 2**20  # bytes of a request
    pixels: int = 50_000_000  # of an image, told from its header before it is decoded
    items: int = 64  # of a request
    queue: int = 512  # items that wait; beyond them a request is told to come back
    batch: int = 32  # items of one call of the network
    wait: float = 0.005  # seconds that an item waits for others
    seconds: float = 30.0  # for a request's answer

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "wait" else 1e-3
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise HeadsError(
                    f"`{field.name}` is a number of at least {least:g}, found {value!r}.", parameter=field.name
                )


class Refused(Exception):
    "What a client gets in place of an answer: a status of HTTP and a reason for people."

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason
