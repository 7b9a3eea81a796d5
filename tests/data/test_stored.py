"""A column gives back what was stored, in memory and from a file."""

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage

from fastai_heads.data.stored import Column, row_bytes
from fastai_heads.errors import HeadsError

ROWS = np.array([3, 0, 2])


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_what_is_stored_comes_back(tmp_path, where, dtype):
    values = TensorImage(torch.randn(3, 2, 5) * 3).to(dtype)
    path = tmp_path / "a.npy" if where == "file" else None
    column = Column.empty(4, values, path)
    column[ROWS] = values
    column.flush()
    found = column[ROWS[::-1].copy()]
    assert type(found) is TensorImage and found.dtype == dtype and torch.equal(found.flip(0), values)
    assert len(column) == 4 and column.shape == (4, 2, 5) and column.in_memory == (where == "memory")
    if path:
        again = Column.read(path, column.describe())
        assert torch.equal(again[ROWS], values) and type(again[ROWS]) is TensorImage
        path.unlink()  # by another process
        assert torch.equal(again[ROWS], values)


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.flatten(2).transpose(1, 2)[:, 0],
        lambda x: x,
    ],
    ids=["channels last", "permuted", "token", "plain"],
)
def test_batches_keep_their_layout(tmp_path, where, layout):
    batch = layout(torch.randn(3, 4, 5, 6))
    column = Column.empty(4, batch, tmp_path / "a.npy" if where == "file" else None)
    column[ROWS] = batch
    column.flush()
    column = column if where == "memory" else Column.read(tmp_path / "a.npy", column.describe())
    found = column[ROWS]
    assert torch.equal(found, batch) and found.stride() == batch.stride() and column[ROWS[:1]].shape == batch[:1].shape


def test_columns_without_numbers(tmp_path):
    column = Column.empty(3, torch.zeros(2, 0), tmp_path / "a.npy")
    column[np.arange(2)] = torch.zeros(2, 0)
    column.flush()
    assert column[np.arange(2)].shape == (2, 0)


def test_half_precision(tmp_path):
    values = torch.tensor([[1 / 3], [1000.1]])
    column = Column.empty(2, values, tmp_path / "a.npy", torch.float16)
    column[np.arange(2)] = values
    column.flush()
    found = column[np.arange(2)]
    assert found.dtype == torch.float32 and column.error == (found - values).abs().max().item() > 0
    assert row_bytes(values, torch.float16) == 2 and row_bytes(values.long(), torch.float16) == 8
    with pytest.raises(HeadsError, match=r"`dtype`: taps reach 1e\+05, which torch.float16 cannot hold"):
        column[np.arange(2)] = values * 100
