"""The front door: flags, models, page. No logic.

Where flags cannot be given (a Space), environment variables take their place: VAMBA_MODEL, VAMBA_COMPARE_MODEL and, for
a Vamba checkpoint, VAMBA_EIGHT_BIT=1, VAMBA_INT8=1, VAMBA_RETRIEVE and VAMBA_GPU_MEMORY.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

PUBLISHED, EMBEDDED, TWIN = "TIGER-Lab/Vamba-Qwen2-VL-7B", "embedded", "embedded-twin"


def flags() -> argparse.Namespace:
    """On a Space with a GPU the published checkpoint is the default; everywhere else the model that ships along."""
    on_space = "SPACE_ID" in os.environ
    model = PUBLISHED if on_space and os.path.exists("/dev/nvidia0") else EMBEDDED
    parser = argparse.ArgumentParser(description="Watch a video with a Mamba-2 model and talk to it while it plays.")
    parser.add_argument("--model", default=os.environ.get("VAMBA_MODEL", model), help="a name or a local folder")
    parser.add_argument(
        "--compare-model",
        default=os.environ.get("VAMBA_COMPARE_MODEL"),
        help='the model to compare with, or "none"; beside the embedded model it is its transformer twin',
    )
    for flag, kept in (("--eight-bit", "the memory's keys and values"), ("--int8", "the weights of linear layers")):
        given = os.environ.get("VAMBA_" + flag[2:].upper().replace("-", "_"), "0") not in ("", "0") or None
        parser.add_argument(flag, action="store_true", default=given, help=f"a Vamba checkpoint: {kept} in 8 bits")
    parser.add_argument(
        "--retrieve", type=int, default=os.environ.get("VAMBA_RETRIEVE") or None, metavar="N",
        help="a Vamba checkpoint: an answer reads only the N frames that fit its question best",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-memory", type=float, default=os.environ.get("VAMBA_GPU_MEMORY") or None, metavar="GB",
        help="a Vamba checkpoint: of a video's memory on the GPU; what is older lies in the computer's",
    )  # fmt: skip
    parser.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--visitors", type=int, default=8, help="streams at once")
    parser.add_argument("--share", action="store_true", help="also a public link through gradio.live")
    chosen = parser.parse_args()
    if chosen.compare_model is None:
        chosen.compare_model = TWIN if chosen.model == EMBEDDED else "none"
    return chosen


def serve(chosen: argparse.Namespace) -> None:
    """Loads the models and serves the page until it is stopped."""
    from app.live.session import Sessions
    from app.page.ui import build, launch_options
    from pipeline import Engine, UserError, load

    rival = None if chosen.compare_model == "none" else Engine(load(chosen.compare_model))
    given = {name: getattr(chosen, name) for name in ("eight_bit", "int8", "retrieve", "gpu_memory")}
    options = {name: value for name, value in given.items() if value is not None}  # other models take none of these
    sessions = Sessions(Engine(load(chosen.model, **options)), rival, places=chosen.visitors)
    page = build(sessions).queue(max_size=64, default_concurrency_limit=8)
    try:
        page.launch(server_name=chosen.host, server_port=chosen.port, share=chosen.share, **launch_options())
    except OSError as error:
        if "port" not in str(error):
            raise
        raise UserError(f"Port {chosen.port} is taken, so nothing was started; choose another with --port.") from None
    finally:
        sessions.shut()


def main() -> None:
    chosen = flags()
    from pipeline import UserError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' files are deleted then, too
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="vamba-live-uploads-", ignore_cleanup_errors=True) as uploads:
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # before gradio is imported: it reads this once
        try:
            serve(chosen)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
