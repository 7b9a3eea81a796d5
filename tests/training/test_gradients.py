"""Rows of gradients: their products and sums are those of the matrix that is never made."""

import pytest
import torch

from fastai_heads.training.gradients import add_rows, as_matrix, combine, gramian, loss_gradients, split_like

SHAPES = [(3, 4), (200_000,), (), (2, 1, 5)]


def rows(dtype=torch.float64, n=3):
    torch.manual_seed(0)
    found = [[torch.randn(shape, dtype=dtype) for shape in SHAPES] for _ in range(n)]
    found[1][0] = found[2][0] = found[0][3] = None
    return found


def variables(dtype=torch.float64):
    return [torch.zeros(shape, dtype=dtype) for shape in SHAPES]


def test_the_matrix_has_zeros_where_a_loss_does_not_reach():
    matrix = as_matrix(rows(), variables())
    assert matrix.shape == (3, sum(v.numel() for v in variables()))
    assert not matrix[1, :12].any() and matrix[0, :12].all()


def test_products_equal_those_of_the_matrix():
    matrix = as_matrix(rows(), variables())
    assert torch.allclose(gramian(rows()), matrix @ matrix.T, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_counted_in_float32(dtype):
    matrix = as_matrix(rows(dtype), variables(dtype))
    products = gramian(rows(dtype))
    assert products.dtype == matrix.dtype == torch.float32
    assert torch.allclose(products, matrix @ matrix.T, rtol=1e-4)


def test_products_of_nothing_are_zero():
    assert gramian([[None], [None]]).tolist() == [[0, 0], [0, 0]]
    assert gramian([[], []]).tolist() == [[0, 0], [0, 0]]


def test_sums_equal_those_of_the_matrix_and_leave_the_rows():
    weights, before = [0.5, -1.0, 2.0], [[None if g is None else g.clone() for g in row] for row in rows()]
    there = rows()
    total = combine(there, weights)
    wanted = split_like(torch.tensor(weights, dtype=torch.float64) @ as_matrix(there, variables()), variables())
    assert all(torch.allclose(a, b) for a, b in zip(total, wanted))
    for row, old in zip(there, before):
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(row, old))


def test_a_row_that_is_one_tensor_twice_is_summed_right():
    one = torch.ones(3)
    assert combine([[one, one], [one, None]], [2.0, 3.0])[0].tolist() == [5, 5, 5]
    assert combine([[one, one]], [2.0])[1].tolist() == [2, 2, 2] and one.tolist() == [1, 1, 1]


def test_nothing_reached_is_no_gradient():
    assert combine([[None, torch.ones(2)], [None, None]], [1.0, 1.0])[0] is None
    assert combine([], []) == []


def test_a_sum_may_take_the_memory_of_rows_that_are_used_up():
    def rows():
        shared, wide = torch.arange(3.0), torch.ones(1).expand(3)
        return [[torch.ones(3), None, shared, shared, wide], [torch.ones(3), torch.ones(3), wide, None, shared]]

    given, new = rows(), combine(rows(), [2.0, -3.0])
    total = combine(given, [2.0, -3.0], used_up=True)
    assert [t.tolist() for t in total] == [t.tolist() for t in new]
    assert total[0] is given[0][0] and total[1] is given[1][1]
    assert given[0][2].tolist() == [0, 1, 2] and given[0][4].tolist() == [1, 1, 1]  # of several: left as it was


def test_rows_of_batches_add_up():
    a, b = torch.ones(2), torch.full((2,), 3.0)
    assert add_rows(None, [a]) == [a]
    assert add_rows([a, None, a, None], [b, b, None, None])[0].tolist() == [4, 4]
    assert add_rows([a, None, a, None], [b, b, None, None])[1:] == [b, a, None]


def test_a_row_for_each_loss_through_one_graph():
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    shared = x * x
    losses = {"a": shared * y, "b": shared * 2, "c": torch.tensor(1.0)}
    found = loss_gradients(losses, {"a": 1.0, "b": torch.tensor(0.5), "c": 1.0}, [x, y])
    assert found == {"a": [12.0, 4.0], "b": [4.0, None], "c": [None, None]}


def test_parts_of_a_vector_are_no_views():
    parts = split_like(torch.arange(6.0), [torch.zeros(2), torch.zeros(2, 2)])
    assert parts[1].tolist() == [[2, 3], [4, 5]] and all(p._base is None for p in parts)
