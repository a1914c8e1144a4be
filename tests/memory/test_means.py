"""A mean stands for the same slots of a stream, whatever of it was dropped meanwhile, and for none that is gone."""

from __future__ import annotations

import pytest

from pipeline.memory.means import SPAN, first_span, whole_spans
from tests.conftest import gap
from tests.memory.test_disk import empty
from tests.memory.test_memory import grown, rows


@pytest.mark.parametrize("gone", [0, 1, SPAN - 1, SPAN, SPAN + 1, 2 * SPAN])
def test_a_mean_is_of_its_slots_and_of_whole_spans_alone(gone) -> None:
    n = 3 * SPAN + 7
    k, v = rows(n)
    log = grown(empty(None), k, v, 0.0).log.drop_oldest(gone)
    first = first_span(log)
    assert (first - 1) * SPAN < gone <= first * SPAN, "the first that nothing is missing of"
    found = list(whole_spans(log, first))
    assert len(found) == 3 - first
    for number, (time, mean_k, mean_v) in enumerate(found, first):
        slots = slice(number * SPAN, (number + 1) * SPAN)
        assert time.tolist() == [slots.stop - 1.0]
        assert gap(mean_k[:, :, 0], k[:, :, slots].mean(2)) < 1e-12
        assert gap(mean_v[:, :, 0], v[:, :, slots].mean(2)) < 1e-12
