"""Requests that come together are one call of the network, and one that it refuses does not hurt the others."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.export.predictor import ReadItem
from fastai_heads.serve.batches import Batcher
from fastai_heads.serve.limits import Limits, Refused


class Network:
    "A predictor that notes its batches, and refuses items without pixels."

    def __init__(self, resized: bool = True):
        self.manifest = {"inputs": [{"resized": resized}]}
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def compute(self, items, heads):
        "Answer each item with its sum."
        self.calls.append((len(items), heads))
        if any(not item.parts[0].any() for item in items):
            raise HeadsError("there is no pixel")
        if any(item.parts[0].max() == 9 for item in items):
            raise RuntimeError("kernel too large")
        return [{head: item.parts[0].sum() for head in heads} for item in items]


def item(value: int = 1, side: int = 2) -> ReadItem:
    "Make an item of one image."
    return ReadItem((np.full((side, side, 1), value, np.uint8),), None)


def run(network, requests, **limits):
    "Send requests at the same time, and collect their answers or what they raise."

    async def main():
        batcher = Batcher(network, Limits(**limits))
        sent = [asyncio.create_task(batcher.answer(items, heads)) for items, heads in requests]
        task = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*sent, return_exceptions=True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    return asyncio.run(main())


def test_requests_are_joined_and_each_gets_its_own_answer():
    network = Network()
    found = run(network, [([item(i)], ("a",)) for i in range(1, 9)])
    assert network.calls == [(8, ("a",))]
    assert [answer[0]["a"] for answer in found] == [4 * i for i in range(1, 9)]


def test_a_batch_has_a_largest_size():
    network = Network()
    run(network, [([item()] * 5, ("a",)), ([item()] * 3, ("a",))], batch=4)
    assert [n for n, _ in network.calls] == [4, 4]


def test_other_heads_and_other_sizes_are_calls_of_their_own():
    network = Network()
    run(network, [([item()], ("a",)), ([item()], ("a", "b")), ([item(side=3), item()], ("a",))])
    assert sorted(network.calls) == [(1, ("a",)), (1, ("a", "b")), (2, ("a",))]


def test_images_of_any_size_are_computed_so_many_pixels_at_once():
    network = Network(resized=False)
    run(network, [([item(side=4)] * 5, ("a",))], unresized=40)
    assert [n for n, _ in network.calls] == [2, 2, 1]


def test_an_item_that_is_refused_fails_alone():
    found = run(Network(), [([item(1)], ("a",)), ([item(0)], ("a",)), ([item(2)], ("a",)), ([item(9)], ("a",))])
    assert found[0] == [{"a": 4}] and found[2] == [{"a": 8}]
    assert isinstance(found[1], Refused) and (found[1].status, found[1].reason) == (422, "there is no pixel")
    assert isinstance(found[3], RuntimeError)


def test_an_image_that_no_network_of_its_kind_takes_is_refused():
    (found,) = run(Network(resized=False), [([item(9, side=1)], ("a",))])
    assert (found.status, found.reason) == (422, "the network cannot take an image of 1 × 1 pixels: kernel too large")


def test_too_many_that_wait_are_told_to_come_back():
    found = run(Network(), [([item()] * 4, ("a",))] * 3, items=4, waiting=8)
    assert [len(one) for one in found[:2]] == [4, 4] and found[2].status == 503


def test_one_alone_does_not_wait_and_many_wait_for_each_other():
    "After a batch of several, the next one waits for as many; a batch of one waits for nobody."

    async def main():
        network = Network()
        batcher = Batcher(network, Limits(wait=60))
        task = asyncio.create_task(batcher.run())
        for _ in range(3):
            await asyncio.wait_for(batcher.answer([item()], ("a",)), 30)
        assert network.calls == [(1, ("a",))] * 3
        for _ in range(2):
            await asyncio.wait_for(asyncio.gather(*(batcher.answer([item()], ("a",)) for _ in range(3))), 30)
        first = asyncio.create_task(batcher.answer([item()], ("a",)))
        done, _ = await asyncio.wait([first], timeout=0.05)
        assert not done  # it waits for two more
        await asyncio.wait_for(asyncio.gather(first, *(batcher.answer([item()], ("a",)) for _ in range(2))), 30)
        assert network.calls[3:] == [(3, ("a",))] * 3
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_an_item_whose_client_has_gone_is_not_computed():
    async def main():
        network = Network()
        batcher = Batcher(network, Limits())
        gone = asyncio.create_task(batcher.answer([item()], ("a",)))
        await asyncio.sleep(0)
        gone.cancel()
        task = asyncio.create_task(batcher.run())
        await batcher.answer([item()] * 2, ("a",))
        assert network.calls == [(2, ("a",))]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_k_heads_are_one_pass_of_the_body(serve, predictor, pictures):
    passes = []
    hook = predictor.network.network.body.register_forward_hook(lambda *_: passes.append(1))
    client, files = serve(predictor), [("image", pictures[0].read_bytes())]
    passes.clear()
    together = client.post("/predict", files=files).json()["answers"][0]
    assert len(passes) == 1
    hook.remove()
    passes.clear()
    apart = SimpleNamespace(bodies=0)
    for head in predictor.heads:
        graph = predictor.network.graph((head,))
        with_hook = graph.network.body.register_forward_hook(lambda *_: setattr(apart, "bodies", apart.bodies + 1))
        alone = client.post(f"/predict?heads={head}", files=files).json()["answers"][0]
        with_hook.remove()
        assert alone[head] == pytest.approx(together[head], abs=1e-4) if head == "ink" else list(alone) == [head]
    assert apart.bodies == len(predictor.heads)
