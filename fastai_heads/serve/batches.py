"""Requests that come at the same time, joined into one call of the network."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastai_heads.errors import MISFITS, HeadsError, first_line
from fastai_heads.export.predictor import Predictor, ReadItem
from fastai_heads.serve.limits import Limits, Refused

__all__ = ["Batcher"]

Computed = dict[str, Any]
"What the network says of an item, by head."


@dataclass(frozen=True)
class _Waiting:
    "One item that waits for its answer."

    item: ReadItem
    heads: tuple[str, ...]
    answer: asyncio.Future

    @property
    def fits(self) -> tuple:
        "Items of one call of the network have the same."
        return self.heads, self.item.sizes


class Batcher:
    """Answers item by item, and calls the network batch by batch.

    `run` is the task that does it; it ends when it is cancelled. One thread calls the network, which uses all cores
    itself. An item that the network refuses fails alone: the others of its batch are asked again one by one."""

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        seen: Callable[[int], None] = lambda n: None,  # is told the size of every batch
    ):
        self.predictor, self.limits, self.seen = predictor, limits, seen
        self.queue: asyncio.Queue[_Waiting] = asyncio.Queue(limits.waiting)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self.last = 1  # items of the last batch
        self.resized = all(said.get("resized", True) for said in predictor.manifest["inputs"])

    async def answer(
        self,
        items: Sequence[ReadItem],
        heads: tuple[str, ...],
    ) -> list[Computed]:
        "Compute some items. Raises `Refused` where too many wait already."
        if self.queue.maxsize - self.queue.qsize() < len(items):
            raise Refused(503, "too many requests wait: try again in a second")
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        for item, future in zip(items, futures):
            self.queue.put_nowait(_Waiting(item, heads, future))
        return await asyncio.gather(*futures)

    async def run(self) -> None:
        "Answer until cancelled."
        try:
            while True:
                await self._call(await self._collect())
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> list[_Waiting]:
        "Take all that waits, and wait a little where the last batch had more: who sent those sends again."
        batch, clock = [await self.queue.get()], asyncio.get_running_loop().time
        end = clock() + self.limits.wait
        while len(batch) < self.limits.batch:
            if not self.queue.empty():
                batch.append(self.queue.get_nowait())
            elif len(batch) >= self.last or clock() >= end:
                break
            else:
                try:
                    batch.append(await asyncio.wait_for(self.queue.get(), end - clock()))
                except asyncio.TimeoutError:
                    break
        self.last = len(batch)
        return [one for one in batch if not one.answer.done()]  # the others' clients have gone, or waited too long

    async def _call(self, batch: Sequence[_Waiting]) -> None:
        "Compute a batch, the items that fit together in one call."
        loop = asyncio.get_running_loop()
        for group in self._groups(batch):
            self.seen(len(group))
            found = await loop.run_in_executor(self.thread, self._ask, [one.item for one in group], group[0].heads)
            for one, answer in zip(group, found):
                if one.answer.done():
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _groups(self, batch: Sequence[_Waiting]) -> Iterator[list[_Waiting]]:
        "Part a batch by heads and sizes, and by `unresized` where images are as large as they come."
        groups: dict[tuple, list[_Waiting]] = {}
        for one in batch:
            groups.setdefault(one.fits, []).append(one)
        for (_, sizes), group in groups.items():
            pixels = sum(math.prod(size[:2]) for size in sizes)
            most = len(group) if self.resized else max(1, self.limits.unresized // max(1, pixels))
            yield from (group[i : i + most] for i in range(0, len(group), most))

    def _ask(self, items: list[ReadItem], heads: tuple[str, ...]) -> list[Computed | Exception]:
        "Call the network. An error is the answer of the item that raises it."
        try:
            return list(self.predictor.compute(items, heads))
        except Exception as error:
            if len(items) > 1:
                return [self._ask([item], heads)[0] for item in items]
            return [self._explain(error, items[0])]

    def _explain(self, error: Exception, item: ReadItem) -> Exception:
        "Tell an item that the network cannot take from a fault of the service."
        if isinstance(error, HeadsError):
            return Refused(422, str(error))
        if isinstance(error, MISFITS) and not self.resized and item.sizes:
            found = " and ".join(f"{width} × {height}" for height, width, _ in item.sizes)
            return Refused(422, f"the network cannot take an image of {found} pixels: {first_line(error)}")
        return error
