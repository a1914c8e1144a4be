"""The front door: flags, models, page. No logic."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

PUBLISHED, EMBEDDED, TWIN = "TIGER-Lab/Vamba-Qwen2-VL-7B", "embedded", "embedded-twin"
ON_SPACE = "SPACE_ID" in os.environ


def flags() -> argparse.Namespace:
    """On a Space with a GPU the published checkpoint is the default; everywhere else the model that ships along."""
    parser = argparse.ArgumentParser(description="Watch a video with a Mamba-2 model and talk to it while it plays.")
    on_gpu = ON_SPACE and os.path.exists("/dev/nvidia0")
    parser.add_argument("--model", default=PUBLISHED if on_gpu else EMBEDDED, help="a name or a local folder")
    parser.add_argument("--compare-model", default=TWIN, help='the model to compare with, or "none"')
    parser.add_argument("--host", default="0.0.0.0" if ON_SPACE else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--visitors", type=int, default=8, help="streams at once")
    parser.add_argument("--share", action="store_true", help="also a public link through gradio.live")
    return parser.parse_args()


def main() -> None:
    """Loads the models and serves the page until Ctrl-C."""
    chosen = flags()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' files are deleted then, too
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="vamba-live-uploads-") as uploads:
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # before gradio is imported: it reads this once
        from app.session import Sessions
        from app.ui import build, launch_options
        from pipeline import load

        rival = None if chosen.compare_model == "none" else load(chosen.compare_model)
        sessions = Sessions(load(chosen.model), rival, places=chosen.visitors)
        page = build(sessions).queue(max_size=64, default_concurrency_limit=8)
        try:
            page.launch(server_name=chosen.host, server_port=chosen.port, share=chosen.share, **launch_options())
        finally:
            sessions.shut()


if __name__ == "__main__":
    main()
