"""A kept stream's folder: what is in it, who may have it, what becomes of old points, what is refused in sentences."""

import json
import sqlite3
import threading
from pathlib import Path

import pytest
import torch

from pipeline.engine import Engine
from pipeline.keeping import kept as keeping
from pipeline.keeping.found import find, notes, segments
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream, rewrite, thin
from pipeline.keeping.packing import whole
from pipeline.keeping.segment import Record, Segment
from pipeline.stream import Packed, UserError
from tests.keeping.streams import CHUNKS, about, digest, keep, states, tiny


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


@pytest.fixture
def folder(tmp_path, engine) -> Path:
    keep(tmp_path / "stream", engine).close()
    return tmp_path / "stream"


def changed(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(segments(folder)[0]) as db:
        db.execute(statement, values)
    db.close()


def refusal(folder: Path, model) -> str:
    with pytest.raises(UserError) as error:
        KeptStream.open(folder).resume(model)
    return str(error.value)


def test_a_stream_is_kept_whole(folder, engine) -> None:
    found = find(folder)
    *_, (_, position, state) = states(engine)
    assert [cut.number for cut in found.cuts] == list(range(CHUNKS)) and found.cuts[-1].position == position
    resumed = found.newest(engine.model)
    assert digest(engine, resumed.state) == digest(engine, state) and not resumed.note
    assert len(notes(folder, "picture")) == CHUNKS


def test_it_goes_on_from_earlier_too(folder, engine) -> None:
    resumed = find(folder).newest(engine.model, until=find(folder).cuts[-1].until - 0.5)
    assert resumed.cut.number == CHUNKS - 2  # the newest but one


def test_one_has_it_at_a_time(tmp_path, engine) -> None:
    first = KeptStream.create(tmp_path / "stream", about(engine))
    first.note([Record("turn", 1, {})])
    for second in (KeptStream.open, lambda folder: KeptStream.create(folder, {})):
        with pytest.raises(UserError, match="watched elsewhere"):
            second(tmp_path / "stream")
    first.close()
    KeptStream.open(tmp_path / "stream").close()
    with pytest.raises(UserError, match="already"):
        KeptStream.create(tmp_path / "stream", {})


def test_later_records_replace_earlier_ones_and_some_are_forgotten(tmp_path, engine) -> None:
    """Over the segments, too."""
    kept = KeptStream.create(tmp_path / "stream", about(engine))
    kept.note([Record("turn", number, {"text": "first"}, b"x") for number in range(3)])
    kept.close()
    kept = KeptStream.open(tmp_path / "stream")
    kept.note([Record("turn", 1, {"text": "second"})], forget=[("turn", 2)])
    kept.close()
    assert {n: r.about["text"] for n, r in notes(tmp_path / "stream", "turn").items()} == {0: "first", 1: "second"}


def test_points_grow_fewer_as_they_grow_old(tmp_path, engine) -> None:
    """Twelve of every octave, as segment by segment is added; nothing else goes."""
    numbers = 100
    for number in range(numbers):
        segment = Segment.create(tmp_path / f"{number:04}.sqlite")
        segment.put([Record("state", 0, {"chunk": number}), Record("chunk", number, {})])
        segment.seal()
        thin(tmp_path)
    with_point = []
    for path in segments(tmp_path):
        segment = Segment.open(path)
        assert ("chunk", int(path.stem)) in segment.listed()
        with_point += [int(path.stem)] * (("state", 0) in segment.listed())
        segment.close()
    newest = numbers - 1
    assert with_point == [n for n in range(numbers) if n % max(1, 2 ** ((newest - n) // 12).bit_length()) == 0]


def test_who_has_a_segment_by_a_link_keeps_it(folder, tmp_path) -> None:
    path = segments(folder)[0]
    keeping.link_or_copy(path, tmp_path / "fork.sqlite")
    was = (tmp_path / "fork.sqlite").read_bytes()
    rewrite(path, lambda record: record.kind != "state")
    assert (tmp_path / "fork.sqlite").read_bytes() == was != path.read_bytes()


def test_a_state_too_large_to_be_worth_it_is_not_kept_but_its_cuts_are(tmp_path, engine, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.keeping.keeper.LARGEST_STATE", 10)
    keep(tmp_path / "stream", engine).close()
    found = find(tmp_path / "stream")
    assert len(found.cuts) == CHUNKS and not found.points
    resumed = found.newest(engine.model)
    assert resumed.cut is None and resumed.position == 0 and not resumed.state.frames


def test_a_limit_stops_keeping_and_says_so(tmp_path, engine) -> None:
    kept = KeptStream.create(tmp_path / "stream", about(engine))
    keeper = Keeper(engine, kept, limit=100_000)
    for frames, position, state in states(engine):
        keeper.watched(frames, position, state)
    keeper.close()
    assert "may take are full, so keeping stopped at 0:" in keeper.error and 0 < keeper.written < CHUNKS


def test_a_disk_that_hangs_stops_keeping_not_watching(tmp_path, engine, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.keeping.keeper.PATIENCE_S", 0.05)
    keeper = Keeper(engine, KeptStream.create(tmp_path / "stream", about(engine)))
    gate = threading.Event()
    keeper.do(lambda: gate.wait(30) or None)
    for frames, position, state in states(engine):
        keeper.watched(frames, position, state)
    gate.set()
    keeper.close()
    assert keeper.error.startswith("The disk is too slow, so keeping stopped")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_other_weights_are_refused(folder, engine) -> None:
    other = tiny()
    other.model.net.model.norm.weight += 0.25
    assert "another version of its weights" in refusal(folder, other.model)


def test_another_type_of_numbers_is_refused(folder) -> None:
    other = tiny()
    other.model.net.to(torch.float64)
    assert "cannot go on" in refusal(folder, other.model)


def test_other_kernels_are_refused(folder, engine, monkeypatch) -> None:
    monkeypatch.setattr(type(engine.model), "backend", "a GPU, by Triton kernels")
    assert "a GPU, by Triton kernels runs, so it cannot go on exactly" in refusal(folder, engine.model)


def test_another_version_is_refused(folder, engine) -> None:
    changed(folder, "PRAGMA user_version = 2")
    assert "another version of this program" in refusal(folder, engine.model)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA application_id = 7",
        "CREATE TABLE other (x)",
        "CREATE VIEW peek AS SELECT * FROM record",
        "CREATE TRIGGER run AFTER INSERT ON record BEGIN DELETE FROM record; END",
        "ALTER TABLE record ADD COLUMN more TEXT",
        "DELETE FROM record WHERE kind = 'about'",
        "UPDATE record SET digest = zeroblob(32)",
        "UPDATE record SET about = '[]'",
        "DROP TABLE record",
    ],
)
def test_what_was_not_written_here_is_refused(statement, folder, engine) -> None:
    changed(folder, statement)
    assert "damaged or incomplete, so it cannot go on" in refusal(folder, engine.model)


@pytest.mark.parametrize("grown", [{}, [], {"inner.memory.log": [0]}, {"inner.memory.log": ["a", "b"]}, None])
def test_a_chunk_that_lies_about_what_it_holds_does_not_count(grown, folder, engine) -> None:
    """Its digest being right, as a stranger's would be."""
    path = segments(folder)[0]
    segment = Segment.open(path)
    records = [segment.record(*key) for key in segment.listed()]
    segment.close()
    path.unlink()
    segment = Segment.create(path)
    lie = [Record(r.kind, r.number, r.about | {"grown": grown}, r.body) if r.kind == "chunk" else r for r in records]
    segment.put(lie)
    segment.seal()
    resumed = find(folder).newest(engine.model)
    assert resumed.cut is None and not resumed.state.frames


def test_a_state_that_lies_is_refused(folder, engine) -> None:
    path = segments(folder)[0]
    segment = Segment.open(path)
    records = [segment.record(*key) for key in segment.listed()]
    segment.close()
    path.unlink()
    segment = Segment.create(path)
    for record in records:
        if record.kind == "state":
            document = json.loads(json.dumps(record.about["document"]).replace('"units": ', '"units": -'))
            record = Record(record.kind, record.number, record.about | {"document": document}, record.body)
        segment.put([record])
    segment.seal()
    assert "damaged or incomplete" in refusal(folder, engine.model)


def test_links_are_not_followed(folder, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0000.sqlite").symlink_to(segments(folder)[0])
    with pytest.raises(UserError, match="no kept stream"):
        KeptStream.open(tmp_path / "other")


def test_nothing_is_no_stream(tmp_path) -> None:
    for nothing in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no kept stream"):
            KeptStream.open(nothing)


def test_a_model_that_cannot_be_kept_says_so_and_watching_goes_on(tmp_path) -> None:
    from tests.fake_model import FakeModel

    engine = Engine(FakeModel())
    keeper = Keeper(engine, KeptStream.create(tmp_path / "stream", {"backend": engine.backend}))
    keeper.watched(1, 1, engine.start())
    keeper.close()
    assert "cannot be kept" in keeper.error


def test_a_packed_whole_is_what_the_pieces_make(folder, engine) -> None:
    """All of a state's tensors, and no other."""
    *_, (_, _, state) = states(engine)
    a, b = whole(engine.model.pack(state)), whole(engine.model.pack(find(folder).newest(engine.model).state))
    assert isinstance(a, Packed) and a.document == b.document and a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
