"""Going back: a fork is the stream as it was at a second, bit for bit, and goes on by itself; the original stays.

A camera's stream of twenty chunks in several segments, whose pictures were kept as they were sent; encrypted or not.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from pipeline.engine import Engine
from pipeline.keeping.found import segments
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.reels import Reel, frame_records, stretches
from pipeline.keeping.segment import Record
from pipeline.keeping.taking import place_of
from pipeline.sources.camera import decode_jpeg
from pipeline.stream import Frame, StreamState, UserError, VideoChunk
from tests.keeping.streams import CHUNKS, SECRET, about, chunks, digest, tiny


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


def sent() -> list[VideoChunk]:
    """The chunks of tests/keeping/streams as a camera sends them: JPEGs."""

    def frame(one: Frame) -> Frame:
        made = io.BytesIO()
        Image.fromarray(one.rgb).save(made, "JPEG")
        return Frame(decode_jpeg(made.getvalue()), one.time, jpeg=made.getvalue())

    return [VideoChunk(tuple(map(frame, chunk.frames))) for chunk in chunks()]


def watched(engine: Engine, until: float = 1e9) -> StreamState:
    """The state of a stream that nobody watched on after that second."""
    state = engine.start()
    for chunk in sent():
        frames = tuple(frame for frame in chunk.frames if frame.time <= until)
        state = engine.watch(VideoChunk(frames), state) if frames else state
    return state


FORKS = "another visitor's key"


def keep(folder: Path, engine: Engine, pictures: bool = True, secret: str = "") -> None:
    keeper = Keeper(engine, KeptStream.create(folder, about(engine) | {"source": "Webcam"}, secret))
    state, position = engine.start(), 0
    for chunk in sent():
        state = engine.watch(chunk, state)
        records = frame_records(chunk.frames, position) if pictures else []
        position += len(chunk.frames)
        noted = Record("picture", position, {"time": chunk.frames[-1].time}, b"small")
        keeper.watched(len(chunk.frames), position, state, [*records, noted])
    keeper.close()


@pytest.fixture(scope="module", params=["", SECRET], ids=["plain", "encrypted"])
def kept(request, tmp_path_factory, engine) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setattr("pipeline.keeping.kept.SEGMENT_S", 7.0)
    folder = tmp_path_factory.mktemp("rewinding") / "stream"
    keep(folder, engine, secret=request.param)
    patch.undo()
    assert len(segments(folder)) > 3
    yield folder


def gone_back(kept: Path, fork: Path, engine: Engine, at: float, secret: str = SECRET) -> StreamState:
    """A fork's state at that second, watched on from the nearest point and kept."""
    with closing(KeptStream.open(kept, secret)) as original:
        resumed = original.found.newest(engine.model, at)
        (stretch,) = original.stretches(resumed, at)
        shown = original.shown(stretch)
        original.fork(fork, FORKS)
    stream = KeptStream.open(fork, FORKS)
    stream.go_on_from(resumed, engine.model, at)
    keeper, state, position = Keeper(engine, stream), resumed.state, resumed.position
    for chunk in shown:
        frames = chunk.frames(engine.long_side)
        state = engine.watch(VideoChunk(frames), state)
        keeper.watched(len(frames), position + len(frames), state, frame_records(frames, position))
        position += len(frames)
    keeper.close()
    return state


def test_every_second_can_be_gone_back_to_bit_for_bit(kept, engine, tmp_path) -> None:
    """The state, what is kept of it in the fork, and the original."""
    was = {path.name: path.read_bytes() for path in place_of(kept).iterdir()}
    last = int(sent()[-1].frames[-1].time)
    for at in (0, *range(6, last, 17), last):
        state = gone_back(kept, tmp_path / "fork", engine, at)
        want = digest(engine, watched(engine, at))
        assert digest(engine, state) == want
        fork = KeptStream.open(tmp_path / "fork", FORKS)
        assert digest(engine, fork.resume(engine.model).state) == want and fork.found.cuts[-1].until == at
        assert all(record.about["time"] <= at for record in fork.notes("picture").values())
        assert sorted(fork.notes("frame")) == list(range(at + 1))
        fork.close()
        shutil.rmtree(tmp_path / "fork")
    assert {path.name: path.read_bytes() for path in place_of(kept).iterdir()} == was


def test_a_fork_goes_on_by_itself(kept, engine, tmp_path) -> None:
    """To the end of the same stream; the fork of a fork, too; and the original may go."""
    shutil.copytree(kept, tmp_path / "original")
    gone_back(tmp_path / "original", tmp_path / "fork", engine, 12)
    gone_back(tmp_path / "fork", tmp_path / "second", engine, 12, FORKS)
    shutil.rmtree(tmp_path / "original")
    shutil.rmtree(tmp_path / "fork")
    second = KeptStream.open(tmp_path / "second", FORKS)
    state = second.resume(engine.model).state
    for chunk in sent():
        frames = tuple(frame for frame in chunk.frames if frame.time > 12)
        state = engine.watch(VideoChunk(frames), state) if frames else state
    assert state.frames == watched(engine).frames and state.seen_until == watched(engine).seen_until
    second.close()


def test_where_pictures_are_missing_it_is_said(engine, tmp_path) -> None:
    keep(tmp_path / "stream", engine, pictures=False)
    stream = KeptStream.open(tmp_path / "stream")
    (stretch,) = stream.stretches(stream.found.newest(engine.model, 5), 5)
    with pytest.raises(UserError, match="not kept picture by picture"):
        stream.shown(stretch)
    stream.close()


def test_a_stream_is_not_forked_over_another(kept, engine, tmp_path) -> None:
    gone_back(kept, tmp_path / "fork", engine, 3)
    with pytest.raises(UserError, match="already"):
        gone_back(kept, tmp_path / "fork", engine, 3)


def test_reels_follow_each_other(kept, engine, tmp_path) -> None:
    """What is still to be watched of each, in the chunks in which it was watched."""
    stream = KeptStream.open(kept, SECRET)
    stream.close()
    cuts = stream.found.cuts
    reels = (Reel(0, {}), Reel(1, {}, cuts[9].until + 1, 10))
    sizes = [len(chunk.frames) for chunk in chunks()]
    first, second = stretches(None, cuts, reels, float("inf"))
    assert first.sizes == tuple(sizes[:10]) and first.until < cuts[9].until + 1 and first.position == 0
    assert second.reel == reels[1] and second.position == 0
    (alone,) = stretches(None, cuts, reels, cuts[5].until)
    assert alone.until == cuts[5].until and alone.reel == reels[0]
    (rest,) = stretches(cuts[CHUNKS - 1], cuts, reels, float("inf"))
    assert rest.reel == reels[1] and rest.position == cuts[CHUNKS - 1].position and not rest.sizes
    (coming,) = stretches(cuts[9], cuts[:10], reels, float("inf"))
    assert coming.reel == reels[1] and coming.position == 0
