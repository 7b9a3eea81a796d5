"""What a service refuses to take, so that no request can bring it down."""

import dataclasses
from typing import Any

from fastai_heads.errors import HeadsError

__all__ = ["Limits", "Refused"]


def _limit(default: float, told: str) -> Any:
    return dataclasses.field(default=default, metadata={"told": told})


@dataclasses.dataclass(frozen=True)
class Limits:
    "The most that one request may hold, and how requests are joined. Raises `HeadsError` for a limit below its least."

    body: int = _limit(32 * 2**20, "bytes of a request")
    items: int = _limit(64, "of a request")
    pixels: int = _limit(50_000_000, "of an image, which its header tells before it is decoded")
    unresized: int = _limit(4_000_000, "pixels of one call of the network, where nothing resizes the images")
    values: int = _limit(1_000_000, "in the JSON of a request, where a file in base64 is one")
    text: int = _limit(20_000, "characters of a text")
    connections: int = _limit(64, "at the same time")
    waiting: int = _limit(512, "items; beyond them a request is told to come back")
    batch: int = _limit(32, "items of one call of the network")
    wait: float = _limit(0.005, "seconds that an item waits for others")
    seconds: float = _limit(30.0, "for a request's answer")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), isinstance(field.default, int)
            kinds, least = (int, 1) if whole else (int | float, 0)
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < 2**53:
                kind = "a whole number" if whole else "a number"
                raise HeadsError(f"`{field.name}` is {kind} of at least {least}, found {value!r}.")
        if self.waiting < self.items:
            raise HeadsError(f"`waiting` is at least `items` ({self.items}), found {self.waiting}.")


class Refused(Exception):
    "What a client gets in place of an answer: a status of HTTP, and a reason for people."

    def __init__(
        self,
        status: int,  # 4xx, or 503 and 504
        reason: str,
    ):
        super().__init__(reason)
        self.status, self.reason = status, reason
