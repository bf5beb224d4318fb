import pytest
import torch

from optsd.errors import Unsupported
from optsd.estimate.operations import arithmetic, attention_flops, moved, rule, tensors, traffic

aten = torch.ops.aten


def test_flops_of_products_and_convolutions():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert arithmetic(aten.mm.default, (a, b), {}, a @ b) == ("linear", "float32", 2 * 3 * 5 * 7)
    x, w = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3)
    y = torch.conv2d(x, w, padding=1)
    args = (x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert arithmetic(aten.convolution.default, args, {}, y) == ("convolution", "float32", 2 * 27 * y.numel())


def test_integer_products_count_as_integers():
    left, right = torch.zeros(32, 16, dtype=torch.int8), torch.zeros(16, 8, dtype=torch.int8)
    assert arithmetic(aten._int_mm.default, (left, right), {}, None) == ("linear", "int8", 2 * 32 * 16 * 8)


def test_attention_is_two_products():
    q, k = torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 6, 8)
    assert attention_flops(q, k, k) == 2 * 2 * (2 * 4 * 10 * 6 * 8)


def test_a_product_without_a_rule_is_an_error():
    a = torch.zeros(2, 2)
    with pytest.raises(Unsupported, match="the operation aten::dot has no rule for its arithmetic; add one"):
        arithmetic(aten.dot.default, (a[0], a[0]), {}, a[0, 0])


def test_an_operation_of_another_library_needs_a_rule():
    @torch.library.custom_op("optsd_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    function, x = torch.ops.optsd_test.twice.default, torch.zeros(3)
    with pytest.raises(Unsupported, match="optsd_test::twice has no rule"):
        arithmetic(function, (x,), {}, x)
    rule("optsd_test::twice")(lambda x, out: ("other", "float32", 0.0))
    assert arithmetic(function, (x,), {}, x) == ("other", "float32", 0.0)


def test_traffic_reads_inputs_and_writes_outputs_once():
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    assert traffic(aten.add.Tensor, (a, b), {}, [a])[0] == 3 * 64
    assert traffic(aten.cat.default, ([a, b],), {}, [torch.zeros(8, 4)])[0] == 4 * 64
    assert traffic(aten.copy_.default, (a, b), {}, [a])[0] == 2 * 64  # what is overwritten is not read


def test_traffic_of_a_product_whose_first_argument_is_multiplied_by_nothing():
    a, b, unused = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    assert traffic(aten.baddbmm.default, (unused, a, b), {"beta": 0}, [unused])[0] == 3 * 64
    assert traffic(aten.baddbmm.default, (unused, a, b), {}, [unused])[0] == 4 * 64


def test_traffic_of_allocations_and_lookups():
    assert traffic(aten.empty_like.default, (torch.zeros(9),), {}, [torch.zeros(9)])[0] == 0
    table, rows = torch.zeros(1000, 4), torch.zeros(2, 4)
    assert traffic(aten.embedding.default, (table, torch.zeros(2, dtype=torch.int64)), {}, [rows])[0] == 2 * 32


def test_an_expanded_tensor_moves_what_it_stores():
    assert moved(torch.zeros(1, 4).expand(1000, 4)) == 16


def test_tensors_are_found_in_nested_arguments():
    a, b = torch.zeros(1), torch.zeros(2)
    assert list(tensors(((a, [None, b]), {"x": a}))) == [a, b, a]
