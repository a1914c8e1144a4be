"""What the bench counts of a call, against counts by hand."""

import torch
import torch.nn.functional as F

from pipeline.bench.cost import Cost


def test_attention_whose_heads_share_keys_is_counted_by_hand():
    q, k, v = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    with Cost() as cost:
        F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert cost.flops == 2 * 6 * 5 * 9 * (8 + 8)


def test_what_a_call_makes_itself_is_not_read():
    x, w = torch.randn(3, 4), torch.randn(4, 7)
    with Cost() as cost:
        (x @ w) @ w.T
    assert cost.flops == 2 * 2 * 3 * 4 * 7
    assert cost.bytes == 4 * (3 * 4 + 4 * 7)
