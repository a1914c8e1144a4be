"""Renders assets/example.mp4: slow pans and zooms over freely licensed photographs that ship inside scikit-image.

Run `python -m pipeline.training.example_clip` from the root of the repository. Every shot is one photograph under a
moving crop window, cut to the next without a fade, so the clip has moments to find ("when does a cat appear?") and a
known answer (`SHOTS`). Costs about ten seconds of one core.

Sources, with the licence as scikit-image 0.26 documents it:
  astronaut.png          Eileen Collins, NASA Great Images; public domain
  chelsea.png            Chelsea the cat, Stefan van der Walt; CC0
  coffee.png             Pikolo Espresso Bar, Rachel Michetti; CC0
  rocket.jpg             Falcon 9 with DSCOVR, SpaceX Photos; public domain
  hubble_deep_field.jpg  Hubble eXtreme Deep Field, NASA; public domain
  camera.png             Photographer with a camera, Lav Varshney; CC0
  brick.png              Brick wall, CC0Textures Bricks25; CC0
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, FPS = 640, 360, 15
CODEC = {"crf": "25", "preset": "slow", "bf": "0"}  # no B-frames: every whole second is a picture readers keep


class Shot(NamedTuple):
    """`seconds` on one photograph while the crop window moves from `start` to `end`.

    A window is (centre x, centre y, width), each as a share of the photograph; its height follows from 16:9.
    """

    picture: str
    seconds: float
    start: tuple[float, float, float]
    end: tuple[float, float, float]


SHOTS = (
    Shot("astronaut.png", 7.0, (0.45, 0.30, 0.62), (0.52, 0.36, 0.98)),
    Shot("rocket.jpg", 9.0, (0.52, 0.72, 0.55), (0.50, 0.44, 0.92)),
    Shot("hubble_deep_field.jpg", 6.0, (0.35, 0.35, 0.70), (0.65, 0.62, 0.50)),
    Shot("chelsea.png", 8.0, (0.50, 0.45, 0.98), (0.47, 0.42, 0.62)),
    Shot("coffee.png", 9.0, (0.30, 0.50, 0.60), (0.58, 0.50, 0.82)),
    Shot("brick.png", 3.0, (0.35, 0.50, 0.70), (0.65, 0.50, 0.70)),
    Shot("camera.png", 8.0, (0.55, 0.55, 0.98), (0.42, 0.32, 0.60)),
    Shot("chelsea.png", 7.0, (0.62, 0.40, 0.50), (0.45, 0.45, 0.90)),
    Shot("astronaut.png", 4.0, (0.45, 0.55, 0.70), (0.45, 0.28, 0.60)),
    Shot("coffee.png", 5.0, (0.62, 0.45, 0.45), (0.55, 0.50, 0.70)),
    Shot("rocket.jpg", 5.0, (0.50, 0.35, 0.60), (0.50, 0.55, 0.85)),
)


def pictures_folder() -> Path:
    """Where the installed scikit-image keeps its photographs. Raises ImportError where it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError("the example clip is made of photographs inside scikit-image: pip install scikit-image")
    return Path(spec.origin).parent / "data"


def window(picture, shot: Shot, progress: float):
    """The 640x360 view of `picture` (BGR, height x width x 3) at `progress` 0..1 through `shot`, eased at both ends."""
    import cv2
    import numpy as np

    eased = progress * progress * (3 - 2 * progress)
    x, y, share = (a + (b - a) * eased for a, b in zip(shot.start, shot.end))
    rows, columns = picture.shape[:2]
    width = min(share * columns, rows * WIDTH / HEIGHT)
    height = width * HEIGHT / WIDTH
    left = min(max(x * columns - width / 2, 0), columns - width)  # a window never leaves the photograph
    top = min(max(y * rows - height / 2, 0), rows - height)
    zoom = WIDTH / width
    move = np.array([[zoom, 0, -left * zoom], [0, zoom, -top * zoom]], np.float32)
    return cv2.warpAffine(picture, move, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def render(target: Path) -> None:
    """Writes the clip: H.264, 640x360, 15 frames/s, a keyframe every two seconds so that seeking is exact and quick."""
    import av
    import cv2

    folder = pictures_folder()
    with av.open(str(target), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=CODEC)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 2 * FPS
        stream.codec_context.thread_count = 1  # the same bytes on any number of cores
        for shot in SHOTS:
            picture = cv2.imread(str(folder / shot.picture), cv2.IMREAD_COLOR)
            count = round(shot.seconds * FPS)
            for index in range(count):
                view = window(picture, shot, index / max(count - 1, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="bgr24")))
        container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/example.mp4"))
    target = parser.parse_args().out
    render(target)
    print(f"{target}: {sum(shot.seconds for shot in SHOTS):.0f} s, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
