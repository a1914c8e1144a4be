"""Draws assets/example.mp4: seven shots of things that the embedded model knows, with titles, music and a sentence.

Run `python -m pipeline.training.example_clip` from the root of the repository. Pictures and sounds are made by
pipeline/training/drawn alone, with no file of anybody's: a ray tracer, noise, plucked strings. The voice is eSpeak
NG's, the letters are those that Pillow brings along (Aileron, CC0). The clip has moments to find ("When does the
clock appear?"), a count (four oranges), things that come back, writing and speech, and the true answers are `SHOTS`.
Costs ten minutes of one core; `--fps 1` draws only what is watched of it, in one minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.training.drawn import scenes, sound

WIDTH, HEIGHT, FPS = 640, 360, 12
CODEC = {"crf": "32", "preset": "slow", "bf": "0"}  # no B-frames: every whole second is a picture readers keep
BITS_OF_SOUND = 48_000
LETTERS = 40  # their size in pixels
GRAIN, CORNERS = 0.8, 0.16  # deviation of 255; how much darker the corners are
TITLE_S, FADE_S = (1.0, 6.0), 0.5  # when in its shot a title stands
SENTENCE, SENTENCE_AT = "There are four oranges on the table.", 20.0


class Shot(NamedTuple):
    """`seconds` of a scene. draw: second of the shot, width, height -> picture of 0..1."""

    name: str
    seconds: int
    draw: Callable[[float, int, int], np.ndarray]
    title: str = ""
    title_at: tuple[float, float] = (0.5, 0.9)  # its middle, as shares of the picture


SHOTS = (
    Shot("a balloon before hills, in the morning", 10, scenes.balloon, "THE\nRAINBOW\nBALLOON", (0.19, 0.42)),
    Shot("a clock on a wall: ten o'clock becomes two", 7, scenes.clock),
    Shot("four oranges on a table", 14, scenes.oranges),
    Shot("a tennis ball on a beach", 8, scenes.ball),
    Shot("a lighthouse on a rock in the sea", 12, scenes.lighthouse),
    Shot("the balloon over the sea, in the evening", 11, scenes.balloon_at_sea),
    Shot("the four oranges, in the evening", 9, partial(scenes.oranges, evening=True), "THE  END"),
)
SECONDS = sum(shot.seconds for shot in SHOTS)


def pictures(fps: int) -> Iterator[np.ndarray]:
    """RGB, uint8 (HEIGHT, WIDTH, 3), one after the other."""
    dice = np.random.default_rng(71)
    corners = vignette()
    for shot in SHOTS:
        letters = lettering(shot.title, shot.title_at) if shot.title else None
        for index in range(shot.seconds * fps):
            second = index / fps
            drawn = shot.draw(second, WIDTH, HEIGHT) * corners
            if letters is not None:
                drawn = titled(drawn, letters, second)
            grain = GRAIN * dice.standard_normal((HEIGHT, WIDTH, 1), np.float32)
            yield np.clip(drawn * 255 + grain + 0.5, 0, 255).astype(np.uint8)


def vignette() -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return (1 - CORNERS * ((x * x + y * y) / 2) ** 1.5).astype(np.float32)[..., None]


def lettering(title: str, at: tuple[float, float]) -> np.ndarray:
    """How much of each pixel is covered by letters, 0..1 (HEIGHT, WIDTH, 1)."""
    canvas = Image.new("L", (WIDTH * 2, HEIGHT * 2))
    font, middle = ImageFont.load_default(LETTERS * 2), (canvas.width * at[0], canvas.height * at[1])
    ImageDraw.Draw(canvas).text(middle, title, 255, font, anchor="mm", spacing=LETTERS // 2)
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)[..., None] / 255


def titled(picture: np.ndarray, letters: np.ndarray, second: float) -> np.ndarray:
    """White letters with a soft shadow, which come and go."""
    start, end = TITLE_S
    there = min(max(min(second - start, end - second) / FADE_S, 0.0), 1.0)
    shadow = cv2.GaussianBlur(letters, (0, 0), 5)[..., None] * 1.2
    dark = picture * (1 - there * np.clip(shadow, 0, 0.65))
    return dark + (1 - dark) * letters * there


def sounds() -> np.ndarray:
    """float32 samples of one channel, sound.RATE a second. Raises ImportError without espeakng_loader."""
    starts = np.cumsum([0, *(shot.seconds for shot in SHOTS)]).tolist()
    parts = [
        (0.0, 0.22, sound.music(starts[2])),
        (starts[1], 0.10, sound.ticks(SHOTS[1].seconds)),
        (SENTENCE_AT, 0.9, sound.spoken(SENTENCE)),
        (starts[3], 0.07, sound.waves(starts[5] - starts[3])),
        (starts[5], 0.22, sound.music(starts[7] - starts[5])),
    ]
    return sound.mixed(parts, SECONDS)


def render(target: Path, fps: int = FPS) -> None:
    """Writes the clip: H.264 and AAC, 640x360, a keyframe every two seconds so that seeking is exact and quick."""
    with av.open(str(target), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=Fraction(fps), options=CODEC)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.gop_size = 2 * fps
        video.codec_context.thread_count = 1  # the same bytes on any number of cores
        audio = container.add_stream("aac", rate=sound.RATE, layout="mono", bit_rate=BITS_OF_SOUND)
        heard = av.AudioFrame.from_ndarray(sounds()[None], format="fltp", layout="mono")
        heard.sample_rate = sound.RATE
        container.mux(audio.encode(heard))
        container.mux(audio.encode())
        for picture in pictures(fps):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/example.mp4"))
    parser.add_argument("--fps", type=int, default=FPS, help="pictures a second (default: %(default)s)")
    args = parser.parse_args()
    render(args.out, args.fps)
    print(f"{args.out}: {SECONDS} s, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
