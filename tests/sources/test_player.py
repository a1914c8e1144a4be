"""The seconds of a picture are those at which a browser's player shows it: proved in Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.sources.test_cases import CASES
from tests.sources.test_video import gray_of, read

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

SHOWN = """async (times) => {
    const video = document.querySelector('video'), file = document.querySelector('input').files[0];
    video.muted = true;
    video.src = URL.createObjectURL(file);
    await new Promise((done, failed) => { video.onloadeddata = done; video.onerror = failed; });
    const canvas = document.createElement('canvas'), brush = canvas.getContext('2d', {willReadFrequently: true});
    canvas.width = 64;
    canvas.height = 48;
    const seen = [];
    for (const time of times) {
        const there = new Promise(done => { video.onseeked = done; });
        video.currentTime = time;
        await there;
        await new Promise(done => setTimeout(done, 150));
        brush.drawImage(video, 0, 0, 64, 48);
        seen.push(Array.from(brush.getImageData(0, 0, 64, 48).data.filter((_, i) => i % 4 === 1)));
    }
    return seen;
}"""


@pytest.fixture(scope="module")
def player():
    """player(path, seconds) -> the green of Chromium's pictures at these seconds, (seconds, 48, 64)."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page()

        def shown(path: Path, times: list[float]) -> np.ndarray:
            page.set_content("<input type=file><video></video>")
            page.set_input_files("input", path)
            return np.array(page.evaluate(SHOWN, times), float).reshape(-1, 48, 64)

        yield shown
        chromium.close()


def with_sound(path: Path, starts: float, lasts: float, **options: str) -> Path:
    """Eight pictures, one a second from `starts` on, beside sound of `lasts` seconds from 0 on (0: none)."""
    with av.open(path, "w", options=options) as out:
        video = out.add_stream("libx264", rate=10, options={"preset": "ultrafast", "qp": "10"})
        sound = out.add_stream("aac", rate=44_100) if lasts else None
        video.width, video.height, video.pix_fmt, packets = 64, 48, "yuv420p", []
        for i in range(round(lasts * 44_100 / 1024)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 44_100, i * 1024
            packets += sound.encode(silence)
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray_of(i), np.uint8), format="rgb24")
            frame.pts = round((starts + i) * 10)
            packets += video.encode(frame)
        packets += video.encode(None) + (sound.encode(None) if sound else [])
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return path


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("starts,lasts", [(0, 0), (5, 13), (3, 13), (0, 20), (5, 0)])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_the_player_shows_each_picture_at_its_second(tmp_path, player, kind, starts, lasts, fragmented):
    if fragmented and kind == "mkv":
        pytest.skip("only MP4 comes in fragments")
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    path = with_sound(tmp_path / f"clip.{kind}", starts, lasts, **options)
    frames = read(path, fps=None)
    assert len(frames) == 8
    seen = player(path, [f.time + 0.5 for f in frames[:-1]]).mean((1, 2))
    assert seen == pytest.approx([f.rgb.mean() for f in frames[:-1]], abs=5)
    assert len({round(s) for s in seen}) == 7


@pytest.mark.parametrize("name", ["audio_leads_5s.mp4", "audio_leads_5s.mkv", "edit_empty_5s.mp4", "hold_10min.mp4"])
def test_the_player_agrees_on_the_cases(player, name):
    """Of all the file's pictures, the one that looks most like the player's is the one of that second."""
    frames = read(CASES / name, fps=None)
    chosen = range(0, len(frames) - 1, max(1, len(frames) // 9))
    seen = player(CASES / name, [frames[i].time + 0.04 for i in chosen])
    small = np.stack([cv2.resize(f.rgb[..., 1], (64, 48), interpolation=cv2.INTER_AREA) for f in frames]).astype(float)
    alike = [int(np.abs(small - picture).mean((1, 2)).argmin()) for picture in seen]
    assert alike == pytest.approx(list(chosen), abs=1)
