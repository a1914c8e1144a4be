"""Hearing: sentences with their seconds where somebody speaks, music where a tune plays, and nothing made up."""

import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.assets import ASSETS
from pipeline.senses.sound import MUSIC, OTHER, Sounds, heard, is_music
from pipeline.senses.speech import Speech
from pipeline.senses.transcriber import load_transcriber, sentences
from pipeline.senses.voice import RATE, Stretches, VoiceGate, load_voice_net, voiced
from pipeline.stream import UserError
from tests.sources.test_sound import film, subtitled, tone

SPOKEN = str(Path(__file__).parents[1] / "data/sound/spoken.mp4")
TIME = np.arange(8 * RATE) / RATE


def tune(notes=(0, 4, 7, 12, 7, 4, 0, 5, 9, 12, 9, 5, -1, 2, 7, 11, 7, 2, 0, 4)) -> np.ndarray:
    """Eight seconds of plucked notes, semitones from 440 Hz, 0.4 s each."""
    sound, time = np.zeros(len(TIME)), np.arange(int(0.4 * RATE)) / RATE
    for i, note in enumerate(notes):
        hertz = 440 * 2 ** (note / 12)
        note_of = sum(np.sin(2 * np.pi * hertz * k * time) / k**1.5 for k in range(1, 5)) * np.exp(-2 * time) * 0.2
        sound[i * len(time) : (i + 1) * len(time)] = note_of
    return sound.astype(np.float32)


NOISE = np.random.default_rng(0).normal(0, 0.1, len(TIME)).astype(np.float32)
HUM = (0.1 * sum(np.sin(2 * np.pi * 100 * k * TIME) / k for k in range(1, 8)) + NOISE / 20).astype(np.float32)
SIREN = (0.1 * np.sin(2 * np.pi * np.cumsum(np.where(TIME % 1 < 0.5, 600, 900)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def gate():
    net = load_voice_net(ASSETS / "voice.safetensors")
    return lambda: VoiceGate(net)


def test_a_tune_is_music_and_noise_a_hum_and_a_siren_are_not(gate):
    assert is_music(tune()) and is_music(tune() * 0.05) and is_music(tune() + NOISE / 50)
    for other in (NOISE, HUM, SIREN):
        assert not is_music(other) and heard(other, gate()) == OTHER
    assert heard(tune(), gate()) == MUSIC and heard(np.zeros(4 * RATE, np.float32), gate()) == ""


@pytest.mark.parametrize("sizes", [[1], [100, 7000], [512], [16_000, 3]])
def test_how_a_sound_is_cut_changes_no_probability_of_a_voice(gate, sizes):
    sound = np.concatenate([tune()[:RATE], NOISE[:RATE] * 3])[: 3000 if sizes == [1] else None]
    whole, cut, parts, at = gate().hear(sound), gate(), [], 0
    while at < len(sound):
        size = sizes[len(parts) % len(sizes)]
        parts.append(cut.hear(sound[at : at + size]))
        at += size
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_a_short_voice_is_none_and_a_short_pause_is_bridged():
    step = 0.032
    likely = np.array([0.0] * 10 + [0.9] * 20 + [0.1] * 5 + [0.9] * 20 + [0.1] * 40 + [0.9] * 4 + [0.0] * 10)
    assert voiced(likely) == ((10 * step, 55 * step),)
    assert voiced(np.zeros(5)) == () and voiced(np.full(50, 0.9)) == ((0.0, 50 * step),)


class Loud:
    """Stands for the voice's network: a window is a voice where it is loud. windows: (W, samples)."""

    def __call__(self, windows, carried):
        return (windows.abs().mean(1) > 0.1).float(), carried


@pytest.mark.parametrize("size", [400, 1600, 16_000])
def test_stretches_hold_all_that_is_said_once_and_are_never_long(size):
    """Voices of two, forty and three seconds; the long one has pauses."""
    plan = [(0, 3), (1, 2), (0, 8), *[(1, 9.0), (0, 0.6)] * 4, (0, 6), (1, 3), (0, 5)]
    sound = np.concatenate([np.full(int(seconds * RATE), 0.5 * on, np.float32) for on, seconds in plan])
    cutter, found = Stretches(Loud()), []
    for at in range(0, len(sound), size):
        found += cutter.add(at / RATE, sound[at : at + size])
    found += cutter.finish()
    assert all(len(one.samples) <= 29 * RATE for one in found)
    spoken = sum(end - start for one in found for start, end in one.voiced)
    assert spoken == pytest.approx(2 + 36 + 3, abs=1.0)
    starts = [one.time + one.voiced[0][0] for one in found]
    assert starts[0] == pytest.approx(3.0, abs=0.05) and starts[1] == pytest.approx(13.0, abs=0.05)
    ends = [one.time + one.voiced[-1][1] for one in found]
    assert all(end <= start + 0.05 for end, start in zip(ends, starts[1:]))


def test_a_sentence_begins_where_a_voice_does_and_ends_within_it():
    words = [(" Hello", 1.4), (" everybody.", 2.2), (" Today", 6.5), (" it", 6.7), (" rains", 12.0)]
    said = sentences(iter(words), [(1.0, 2.3), (6.0, 7.0)])
    assert [(one.time, one.until, one.text) for one in said] == [
        (1.0, 2.2, "Hello everybody."),
        (6.0, 7.0, "Today it rains"),
    ] or said[1].time == 2.2
    assert sentences(iter([(" ...", 1.0)]), [(0.0, 2.0)]) == []


def gleaned(sense, path, stop=None):
    found = list(sense.glean(path, stop or threading.Event()))
    return [event for each in found for event in each.events], [each.lacks for each in found if each.lacks]


def test_what_is_said_has_its_second_and_music_is_not_words():
    said, lacks = gleaned(Speech(), SPOKEN)
    assert not lacks and len(said) == 2
    assert "rockets and cats" in said[1].text and "playing in the garden" in said[0].text
    assert said[0].time == pytest.approx(2.0, abs=0.3) and said[1].time == pytest.approx(9.1, abs=0.3)
    assert all(0.37 <= event.weight <= 1 and event.time < event.until < 14 for event in said)


def test_music_is_heard_where_the_tune_plays():
    found, _ = gleaned(Sounds(), SPOKEN)
    (music,) = [event for event in found if event.text == MUSIC]
    assert 10 <= music.time <= 15 and 18 <= music.until <= 22


def test_noise_and_a_tune_alone_are_nobodys_words(tmp_path):
    both = np.concatenate([tune(), NOISE])
    assert gleaned(Speech(), film(tmp_path / "a.mp4", both, seconds=16)) == ([], [])


@pytest.mark.parametrize("sense", [Speech(), Sounds()])
def test_without_sound_it_says_so_and_silence_is_nothing(tmp_path, sense):
    assert gleaned(sense, film(tmp_path / "a.mp4")) == ([], ["The video has no sound."])
    assert gleaned(sense, film(tmp_path / "b.mp4", tone(4) * 0)) == ([], [])


def test_subtitles_are_taken_as_they_are(tmp_path):
    said, _ = gleaned(Speech(), subtitled(tmp_path / "a.mkv"))
    assert [(event.time, event.until, event.text) for event in said] == [
        (0.5, 1.5, "Good morning."),
        (2.0, 3.0, "Two lines, as it were."),
    ]


def test_it_ends_when_it_is_stopped():
    stop = threading.Event()
    stop.set()
    assert gleaned(Speech(), SPOKEN, stop) == ([], []) and gleaned(Sounds(), SPOKEN, stop) == ([], [])


def test_another_whisper_is_taken_by_its_folder(tmp_path):
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    sizes = {
        f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in [("layers", 1), ("attention_heads", 2)]
    }
    config = WhisperConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=51864, **sizes)
    model = WhisperForConditionalGeneration(config)
    shipped = load_transcriber(ASSETS)._model.generation_config
    model.generation_config = type(shipped)(**shipped.to_dict() | {"alignment_heads": [[0, 0]], "max_length": 20})
    model.save_pretrained(tmp_path)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    WhisperTokenizerFast(tokenizer_file=str(ASSETS / "speech-tokenizer.json")).save_pretrained(tmp_path)
    assert isinstance(load_transcriber(ASSETS, str(tmp_path)).sentences(NOISE[:RATE], [(0.0, 1.0)]), list)
    with pytest.raises(UserError, match=r"holds no Whisper"):
        (tmp_path / "empty").mkdir()
        load_transcriber(ASSETS, str(tmp_path / "empty"))
