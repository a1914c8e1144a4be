"""The front door: flags, models, page. No logic."""

from __future__ import annotations

import argparse
import os

PUBLISHED = "TIGER-Lab/Vamba-Qwen2-VL-7B"
EMBEDDED, EMBEDDED_TWIN = "embedded", "embedded-twin"


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Vamba Live: watch a video with a state-space model and talk to it.")
    on_gpu_space = bool(os.environ.get("SPACE_ID")) and os.path.exists("/dev/nvidia0")
    parser.add_argument("--model", default=PUBLISHED if on_gpu_space else EMBEDDED, help="a name or a local folder")
    parser.add_argument("--compare-model", default=EMBEDDED_TWIN, help='the model beside it, or "none"')
    parser.add_argument("--host", default="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--visitors", type=int, default=8, help="sessions at once")
    parser.add_argument("--share", action="store_true", help="a public link through gradio.live")
    return parser.parse_args()


def main() -> None:
    """Loads the models and serves the page until Ctrl-C."""
    chosen = flags()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from app.session import Sessions
    from app.ui import build, launch_options
    from pipeline import load

    rival = None if chosen.compare_model == "none" else load(chosen.compare_model)
    sessions = Sessions(load(chosen.model), rival, places=chosen.visitors)
    page = build(sessions).queue(max_size=64, default_concurrency_limit=8)
    page.launch(server_name=chosen.host, server_port=chosen.port, share=chosen.share, **launch_options())


if __name__ == "__main__":
    main()
