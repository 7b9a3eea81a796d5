"""From arrays to what the heads say: preprocessing, network, activation and decoding as one module."""

from collections.abc import Mapping
from contextlib import nullcontext
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastai_heads.data.rows import Row
from fastai_heads.export.network import restrict
from fastai_heads.model import MultiHeadModel
from fastai_heads.tasks.task import Task

__all__ = ["Graph", "TorchNetwork", "n_arrays"]

_KEPT = 64  # choices of heads whose networks are kept: of n heads there are 2ⁿ
_DECODED = ("mask", "class", "plain")  # answers that are decoded here, the others from the probabilities


class Graph(nn.Module):
    "The arrays of a batch in, a tensor for each head out: probabilities, numbers, places, codes or detections."

    def __init__(
        self,
        network: MultiHeadModel,  # with weights
        inputs: tuple[Mapping[str, Any], ...],  # as a manifest describes them, in order
        tasks: Mapping[str, tuple[Task, str]],  # head → (its task, what its answer is called)
        takes: str = "uint8",  # images as (B, H, W, C) of uint8; 'body': as the body takes them
    ):
        super().__init__()
        self.network, self.inputs, self.tasks, self.takes = network, inputs, dict(tasks), takes
        for said in inputs:
            if said.get("mean") is not None:
                for what in ("mean", "std"):
                    shape = (1, -1, *[1] * 2)
                    self.register_buffer(
                        f"{said['name']}_{what}", torch.tensor(said[what]).view(shape), persistent=False
                    )

    def forward(self, *arrays: Tensor) -> dict[str, Tensor]:
        "Give a tensor for each head."
        preds = self.network(*self.parts(arrays))
        return {name: self.answer(name, pred) for name, pred in zip(self.network.heads.names, preds)}

    def parts(
        self,
        arrays: tuple[Tensor, ...],  # of a batch
    ) -> list[Any]:  # one for each input
        "Make what the body reads."
        given = list(arrays)
        return [self._prepare(said, [given.pop(0) for _ in range(n_arrays(said))]) for said in self.inputs]

    def _prepare(self, said: Mapping[str, Any], arrays: list[Tensor]) -> Any:
        "Make what the body reads: of an image floats (B, C, H, W), normalised; of a missing one NaN."
        if said["kind"] == "row":
            return Row(arrays)
        if said["kind"] == "text" or self.takes == "body":
            return arrays[0]
        image = arrays[0].permute(0, 3, 1, 2).contiguous().float()
        image = image / said["div"] if said["div"] else image
        if said.get("mean") is not None:
            image = (image - getattr(self, f"{said['name']}_mean")) / getattr(self, f"{said['name']}_std")
        return image.masked_fill(arrays[1].view(-1, 1, 1, 1), torch.nan) if len(arrays) > 1 else image

    def answer(
        self,
        name: str,  # of a head
        pred: Tensor,  # (B, …) its prediction
    ) -> Tensor:
        "Activate a prediction, and decode it where an answer is decoded."
        task, answer = self.tasks[name]
        activated = task.activation(pred)
        if answer not in _DECODED:
            return activated
        decoded = task.decode(activated)
        return decoded.to(torch.uint8) if answer == "mask" else decoded


def n_arrays(
    said: Mapping[str, Any],  # an input, as a manifest describes it
) -> int:
    "Count the arrays of an input: a row has categories and numbers, an image that may be missing says so beside it."
    return 2 if said["kind"] == "row" or (said["kind"] == "image" and said.get("partial")) else 1


class TorchNetwork:
    "Runs a network by torch, cut to what some heads need. Threads may share it."

    def __init__(
        self,
        network: MultiHeadModel,  # with weights
        inputs: tuple[Mapping[str, Any], ...],  # as a manifest describes them
        tasks: Mapping[str, tuple[Task, str]],  # head → (its task, what its answer is called)
        device: Any = "cpu",  # where it runs
    ):
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.inputs, self.tasks = inputs, dict(tasks)
        self._cut: dict[tuple[str, ...], Graph] = {}
        # fastai's AWD_LSTM keeps the state of its last text in itself
        remembers = any(hasattr(m, "reset") and hasattr(m, "hidden") for m in network.modules())
        self._alone = Lock() if remembers else nullcontext()

    def graph(
        self,
        heads: tuple[str, ...],  # those that are wanted
    ) -> Graph:
        "Give the module that computes what these heads need."
        graph = self._cut.get(heads)
        if graph is None:
            network = self.network if heads == self.network.heads.names else restrict(self.network, heads)
            graph = Graph(network.eval(), self.inputs, {name: self.tasks[name] for name in heads}).to(self.device)
            if len(self._cut) >= _KEPT:
                self._cut.clear()
            self._cut[heads] = graph
        return graph

    def run(
        self,
        arrays: Mapping[str, np.ndarray],  # name → array, in the order of the inputs
        heads: tuple[str, ...],  # those that are wanted
    ) -> dict[str, np.ndarray]:  # head → (B, …)
        "Compute what some heads say of a batch."
        tensors = [torch.from_numpy(a).to(self.device) for a in arrays.values()]
        with torch.inference_mode(), self._alone:
            found = self.graph(heads)(*tensors)
        return {name: value.as_subclass(Tensor).cpu().numpy() for name, value in found.items()}
