"""Requests that come at the same time, joined into one call of the network."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastai_heads.errors import HeadsError
from fastai_heads.serve.limits import Limits, Refused

__all__ = ["Batcher"]


@dataclasses.dataclass(frozen=True)
class _Waiting:
    "One item that waits for its answer."

    item: Any
    heads: tuple[str, ...]
    answer: asyncio.Future


class Batcher:
    """Answers item by item, and calls the network batch by batch.

    `run` is the task that does it; it ends when it is cancelled. One thread calls the network, which uses all cores
    itself. An item that the network refuses fails alone: the others of its batch are asked again one by one."""

    def __init__(
        self,
        predict: Callable[[Sequence[Any], tuple[str, ...]], Sequence[Any]],  # items, heads → an answer for each
        limits: Limits,
        seen: Callable[[int], None] = lambda n: None,  # is told the size of every batch
    ):
        self.predict, self.limits, self.seen = predict, limits, seen
        self.queue: asyncio.Queue[_Waiting] = asyncio.Queue(limits.queue)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    async def answer(
        self,
        items: Sequence[Any],
        heads: tuple[str, ...],
    ) -> list[Any]:
        "Answer some items. Raises `Refused` where too many wait already, or the answer takes too long."
        if self.queue.maxsize - self.queue.qsize() < len(items):
            raise Refused(503, "too many requests wait: try again in a second")
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        for item, future in zip(items, futures):
            self.queue.put_nowait(_Waiting(item, heads, future))
        try:
            return await asyncio.wait_for(asyncio.gather(*futures), self.limits.seconds)
        except asyncio.TimeoutError:
            raise Refused(504, f"no answer within {self.limits.seconds:g} seconds") from None

    async def run(self) -> None:
        "Answer until cancelled."
        try:
            while True:
                await self._call(await self._collect())
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> list[_Waiting]:
        "Wait for an item, and a little for others that want the same heads."
        batch, clock = [await self.queue.get()], asyncio.get_running_loop().time
        end = clock() + self.limits.wait
        while len(batch) < self.limits.batch:
            if self.queue.empty() and clock() >= end:
                break
            try:
                batch.append(await asyncio.wait_for(self.queue.get(), max(end - clock(), 1e-4)))
            except asyncio.TimeoutError:
                break
        return [one for one in batch if not one.answer.done()]  # whose client has gone, or waited too long

    async def _call(self, batch: Sequence[_Waiting]) -> None:
        "Answer a batch, the items that want the same heads together."
        groups: dict[tuple[str, ...], list[_Waiting]] = {}
        for one in batch:
            groups.setdefault(one.heads, []).append(one)
        loop = asyncio.get_running_loop()
        for heads, group in groups.items():
            self.seen(len(group))
            answers = await loop.run_in_executor(self.thread, self._ask, [one.item for one in group], heads)
            for one, answer in zip(group, answers):
                if one.answer.done():
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _ask(self, items: list[Any], heads: tuple[str, ...]) -> list[Any]:
        "Call the network; an error is the answer of the item that raises it."
        try:
            return list(self.predict(items, heads))
        except Exception as error:
            if len(items) > 1:
                return [self._ask([item], heads)[0] for item in items]
            return [Refused(422, str(error)) if isinstance(error, HeadsError) else error]
