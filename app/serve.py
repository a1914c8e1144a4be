"""From the command line to the page: flags, settings, models, page.

Where flags cannot be given (a Space), environment variables take their place: VAMBA_MODEL, VAMBA_COMPARE_MODEL,
VAMBA_READERS and those of `pipeline.ModelOptions`. Gradio is imported last, because it reads where uploads go once.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.live.view import OWN
from pipeline import (
    Address,
    Dormitory,
    Engine,
    ModelOptions,
    UserError,
    addresses,
    beside,
    choose_readers,
    load,
    partner_of,
)

if TYPE_CHECKING:
    from app.cluster.replicas import Replicas
    from app.live.census import Census
    from app.live.table import Sessions
    from app.operators import Operators

PUBLISHED, EMBEDDED, TWIN = "TIGER-Lab/Vamba-Qwen2-VL-7B", "embedded", "embedded-twin"
NO_MODEL, PARTNER = "none", "partner"


@dataclass(frozen=True)
class Settings:
    """What to serve, to whom. model, compare_model: names for `load`; compare_model None: nothing to compare with;
    PARTNER: the model's natural partner."""

    model: str
    compare_model: str | None
    options: ModelOptions
    host: str
    port: int
    visitors: int
    share: bool
    readers: int | None  # processes that decode a file; None: as many as there are cores
    store: Path | None  # the folder of kept streams; None: none are kept
    store_bytes: int  # that they may take together
    sources: tuple[Address, ...]  # the operator's, watched for everybody
    metrics: tuple[str, int] | None  # address of what operators read; None: nowhere
    sleep_after: float  # seconds after which a stream that nobody wants goes to the disk
    sleep_bytes: int | None  # of the disk for sleeping streams; None: half of what is free
    replicas: int | None  # engines in processes of their own; None: one, in this process
    uploads: int | None  # bytes that all uploads together may take; None: half of the disk that is free


def main() -> None:
    """Serves until it is stopped; a mistake of the user's ends it in one sentence and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' files are deleted then, too
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        settings = settings_from(sys.argv[1:])
        with _uploads_folder(settings) as uploads:
            os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # before gradio is imported: it reads this once
            serve(settings)
    except UserError as error:
        sys.exit(str(error))


def settings_from(argv: Sequence[str]) -> Settings:
    """What flags and variables say; a flag wins over its variable."""
    given = _parser().parse_args(argv)
    rival = given.compare_model or (TWIN if given.model == EMBEDDED else NO_MODEL)
    return Settings(
        model=given.model,
        compare_model=None if rival == NO_MODEL else rival,
        options=ModelOptions.from_flags(given, otherwise=ModelOptions.from_environment()),
        host=given.host,
        port=given.port,
        visitors=given.visitors,
        share=given.share,
        readers=given.readers,
        store=Path(given.store) if given.store else None,
        store_bytes=round(given.store_gb * 1e9),
        sources=_sources(given.source),
        metrics=_address(given.metrics) if given.metrics else None,
        sleep_after=60 * given.sleep_after,
        sleep_bytes=None if given.sleep_gb is None else round(given.sleep_gb * 1e9),
        replicas=_replicas(given),
        uploads=None if given.uploads is None else round(given.uploads * 1e9),
    )


def _parser() -> argparse.ArgumentParser:
    """On a Space with a GPU the published checkpoint is the default; everywhere else the model that ships along."""
    on_space = "SPACE_ID" in os.environ
    model = PUBLISHED if on_space and os.path.exists("/dev/nvidia0") else EMBEDDED
    parser = argparse.ArgumentParser(description="Watch a video with a Mamba-2 model and talk to it while it plays.")
    parser.add_argument("--model", default=os.environ.get("VAMBA_MODEL", model), help="a name or a local folder")
    parser.add_argument(
        "--compare-model",
        default=os.environ.get("VAMBA_COMPARE_MODEL"),
        nargs="?",
        const=PARTNER,
        metavar="MODEL",
        help=f'any model to compare with; "{PARTNER}" or no name: the natural one, as HoVLE is mmMamba\'s; '
        f'"{NO_MODEL}": nobody; by default the embedded model\'s transformer twin beside it, else nobody',
    )
    parser.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--visitors", type=int, default=8, help="streams in memory at once; others sleep on the disk")
    parser.add_argument(
        "--sleep-after",
        type=float,
        metavar="MINUTES",
        default=10.0,
        help="a stream that is neither watched nor asked for so long sleeps on the disk until it is (default: 10); "
        "sooner where a newcomer needs its place",
    )
    parser.add_argument(
        "--sleep-gb",
        type=float,
        metavar="GB",
        help="disk for sleeping streams (default: half of what is free; 0: none)",
    )
    parser.add_argument("--share", action="store_true", help="also a public link through gradio.live")
    parser.add_argument(
        "--uploads", type=float, metavar="GB", help="disk for all uploads together (default: half of what is free)"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="[NAME=]ADDRESS",
        help="a camera (rtsp://...), HLS (http(s)://....m3u8) or a folder that is recorded into, watched once for all "
        "visitors; may be repeated. Nothing of the address is shown",
    )
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode a file (default: every core)")
    parser.add_argument(
        "--store",
        metavar="DIR",
        default=os.environ.get("VAMBA_STORE"),
        help="a folder for streams that visitors want kept over restarts (default: none are)",
    )
    parser.add_argument("--store-gb", type=float, metavar="GB", default=20.0, help="disk for all of them (default: 20)")
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="engines in processes of their own, on Ray Serve, behind this page (requirements-cluster.txt); needs "
        "--store, which all of them share (default: one engine, in this process)",
    )
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        default=os.environ.get("VAMBA_METRICS"),
        help="where operators read metrics, health and readiness (default: nowhere; without HOST on 127.0.0.1)",
    )
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode, --senses: all)"))
    return parser


def _sources(texts: list[str]) -> tuple[Address, ...]:
    """Raises UserError, for a name that the page has for something else too."""
    found = addresses(texts)
    if taken := [one.name for one in found if one.name in OWN]:
        raise UserError(f"The page has another source called {taken[0]}, so nothing was started; choose another NAME=.")
    return found


def _replicas(given: argparse.Namespace) -> int | None:
    """Raises UserError for what does not go together with several engines."""
    if given.replicas is None:
        return None
    if not 1 <= given.replicas <= 100:
        raise UserError(f"{given.replicas} replicas cannot be started, so nothing was; choose 1 to 100.")
    if not given.store:
        raise UserError(
            "Replicas share kept streams and uploads in a folder, and none was named, so nothing was started; say "
            "--store DIR."
        )
    if given.source:
        raise UserError(
            "Each replica would watch an operator's camera for itself, so nothing was started; leave out --source, or "
            "--replicas."
        )
    return given.replicas


def _address(text: str) -> tuple[str, int]:
    """Raises UserError for what is no [HOST:]PORT."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise UserError(f"{text!r} is no address for metrics, so nothing was started; say --metrics 9090 or HOST:9090.")
    return host or "127.0.0.1", int(port)


def _uploads_folder(settings: Settings) -> AbstractContextManager[str]:
    """Where replicas share them it stays: streams outlive this page."""
    if settings.replicas and settings.store:
        return nullcontext(str(settings.store.resolve() / "uploads"))
    try:
        return tempfile.TemporaryDirectory(prefix="vamba-live-uploads-", ignore_cleanup_errors=True)
    except OSError:
        raise UserError(
            "There is no folder to keep uploads in, so nothing was started; let TMPDIR name one that can be written."
        ) from None


def serve(settings: Settings) -> None:
    """Loads the models and serves the page until it is stopped."""
    from app.operators import Operators

    operators = Operators(*settings.metrics) if settings.metrics else None
    try:
        _serve(settings, operators)
    finally:
        if operators:
            operators.close()


def _serve(settings: Settings, operators: Operators | None) -> None:
    from app.live.census import census

    if settings.replicas:
        replicas = _replicated(settings)
        _open(settings, replicas, operators, replicas.census)
    else:
        sessions = sessions_of(settings)
        _open(settings, sessions, operators, lambda: census(sessions))


def _open(
    settings: Settings, sessions: Sessions | Replicas, operators: Operators | None, census: Callable[[], Census]
) -> None:
    """The page over these streams, until it is stopped; then they are shut."""
    from app.live import uploads
    from app.page.ui import build, launch_options

    uploads.room.ceiling = settings.uploads
    page = build(sessions).queue(max_size=64, default_concurrency_limit=8)
    try:
        where = {"server_name": settings.host, "server_port": settings.port, "share": settings.share}
        if operators:
            operators.open(census, settings.port)
        page.launch(**where, **launch_options(sessions))
    except OSError as error:
        if "port" not in str(error):
            raise
        raise UserError(f"Port {settings.port} is taken, so nothing was started; choose another with --port.") from None
    finally:
        if operators:
            operators.end()
        sessions.shut()


def _replicated(settings: Settings) -> Replicas:
    """The streams of several engines. Raises UserError, where Ray is not installed too."""
    try:
        from app.cluster.replicas import Replicas
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "Ray is not installed, so no replicas were started; pip install -r requirements-cluster.txt, or leave out "
            "--replicas."
        ) from None
    assert settings.store and settings.replicas
    return Replicas(partial(sessions_of, settings, alone=False), settings.replicas, settings.store.resolve())


def sessions_of(settings: Settings, alone: bool = True) -> Sessions:
    """The table of streams, with the models behind it. alone: whether no other engine has the store."""
    choose_readers(settings.readers)
    from app.live.shelf import Shelf
    from app.live.table import Sessions

    compared = partner_of(settings.model) if settings.compare_model == PARTNER else settings.compare_model
    rival = _ready(compared, beside(compared, settings.options)) if compared else None
    engine = _ready(settings.model, settings.options)
    shelf = None
    if settings.store:
        about: dict[str, Any] = {"model": settings.model, "options": settings.options.given()}
        shelf = Shelf(settings.store, settings.store_bytes, about)
    dormitory = None if settings.sleep_bytes == 0 else Dormitory(settings.sleep_bytes)
    return Sessions(engine, rival, settings.visitors, shelf, settings.sources, dormitory, settings.sleep_after, alone)


def _ready(name: str, options: ModelOptions) -> Engine:
    """The model behind its engine, warm: a GPU model compiles and records now, and no visitor waits for it."""
    engine = Engine(load(name, **options.given()))
    engine.warm_up()
    gc.collect()
    gc.freeze()  # a collection that walks all 400,000 objects of model and libraries stops everybody meanwhile
    return engine
