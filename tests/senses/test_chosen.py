"""Which senses are wanted: what is said of them, and that only they keep numbers and speak."""

import numpy as np
import pytest

from pipeline import UserError
from pipeline.models.shipped import load_embedded
from pipeline.senses.chosen import OF_PICTURES, SENSES, chosen
from pipeline.senses.sensed import Senses
from pipeline.stream import Frame, VideoChunk


def test_all_are_wanted_unless_something_else_is_said():
    assert list(chosen(None)) == list(chosen("all")) == list(chosen(",".join(SENSES)))


@pytest.mark.parametrize("name", SENSES)
def test_a_sense_can_be_had_alone(name):
    assert list(chosen(f" {name} ")) == [name] and not chosen("none")


@pytest.mark.parametrize("told", ["smell", "colours,", "", "colours light", "colours=big"])
def test_what_is_no_sense_is_refused_in_a_sentence(told):
    with pytest.raises(UserError, match=r", so nothing was loaded; .*\.$"):
        chosen(told)


@pytest.mark.parametrize("wanted", [(), ("light",), ("light", "colours")])
def test_only_the_wanted_ones_keep_numbers(wanted):
    senses = Senses(wanted=wanted)
    assert set(senses.widths) == set(wanted)


def test_what_is_not_wanted_is_not_told():
    """Of an orange picture the model tells its colour, and without the sense says that it is unsure."""
    frame = Frame(np.full((234, 416, 3), (250, 140, 10), np.uint8), 0.0)
    told = {}
    for wanted in (OF_PICTURES, ()):
        model = load_embedded(senses=wanted)
        state = model.watch(VideoChunk((frame,)), model.start())
        assert [name for name in OF_PICTURES if f"sensed {name}" in state.inner.index.fields] == list(wanted)
        told[wanted] = model.shows(state, 0.0, 9.0)
        assert model.unpack(model.pack(state)).frames == 1
    assert told[()] == ""
