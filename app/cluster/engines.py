"""Engines on Ray Serve, the one place that knows Ray: each is an application of its own with one replica, so that each
is reached by its own handle and none is removed but the one that is meant.

Serve starts them again when they die or hang. Its own ways to route and to shrink do not fit: they count calls, and a
hash ring moves live streams when it grows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback, unless a cluster is joined
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a raylet ends where its agents need longer than this

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import RunTarget
from ray.serve.exceptions import BackPressureError, RayServeException

from app.cluster.streams import Streams
from app.cluster.wire import Away, Reply
from app.live.table import Sessions
from pipeline import UserError

log = logging.getLogger(__name__)
logging.getLogger("ray.serve").setLevel(logging.WARNING)

NAME = "vamba-engine-{}"
MOST = 1_000  # engines
NUMBER = re.compile(r"vamba-engine-(\d{1,4})", re.ASCII)
CALLS, WAITING = 256, 128  # calls that an engine has at work, and that wait for it; of more each is refused
READY_S = 900.0  # a published checkpoint is loaded within this
HEALTH_S, HEALTH_TIMEOUT_S = 5.0, 30.0
PULSE_S, LOOK_S = 20.0, 0.25  # who waits for an engine looks so often whether it is there
END_S = 30.0  # an engine that ends has so long to write what it keeps
BUSY = "Too many ask for the same engine at the moment, so this was not done; try again in a moment."


class Served(Streams):
    """An engine's process."""

    def __init__(self, make: Callable[[], Sessions]) -> None:
        folder = Path(os.environ["TMPDIR"])  # its own: what the process before it left goes
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        super().__init__(make())

    def check_health(self) -> None:
        """Serve asks; where this raises, the process is ended and started again."""
        if hangs := self.census().hangs:
            raise RuntimeError(hangs)

    def __del__(self) -> None:
        if sessions := getattr(self, "sessions", None):
            self._over.set()
            sessions.shut()


class Handle:
    """A wire to an engine. A thread always has a call there, which fails at once when the process dies: else a call to
    an engine that Serve is starting again would wait for that."""

    def __init__(self, name: str) -> None:
        self.name, self._handle = name, serve.get_app_handle(name)
        self._down, self._over = False, threading.Event()
        self._feeling = threading.Thread(target=self._feel, name=f"pulse of {name}", daemon=True)
        self._feeling.start()

    def call(self, verb: str, *values: Any, patience: float) -> Reply:
        return self._call(verb, *values, patience=patience, given_up=lambda: self._down)

    def _call(self, verb: str, *values: Any, patience: float, given_up: Callable[[], bool]) -> Reply:
        try:
            return _result(self._handle.call.remote(verb, *values), patience, given_up)
        except BackPressureError:
            return Reply("", refused=BUSY)
        except (TimeoutError, RayServeException, RayError) as error:
            if hasattr(error, "as_instanceof_cause"):  # a fault of ours over there
                raise
            raise Away(self.name) from error

    def _feel(self) -> None:
        verb = "about"
        while not self._over.is_set():
            try:
                self._call(verb, patience=PULSE_S, given_up=self._over.is_set)
                self._down, verb = False, "pulse"
            except Away as error:
                dead = isinstance(error.__cause__, RayActorError)
                self._down, verb = self._down or dead, "about" if dead else verb
                self._over.wait(LOOK_S)

    def close(self) -> None:
        self._over.set()
        self._feeling.join(END_S)


def _result(response: Any, patience: float, given_up: Callable[[], bool]) -> Reply:
    """Of a call; what nobody waits for any more is not to happen later. Raises TimeoutError and what Ray does."""
    end = time.monotonic() + patience
    while True:
        try:
            return response.result(timeout_s=LOOK_S)
        except TimeoutError:
            if time.monotonic() > end or given_up():
                response.cancel()
                raise


class Engines:
    """Those there are and those that are wanted: as many as a file of the store says, which an operator may change."""

    def __init__(self, make: Callable[[], Sessions], wanted: int, store: Path, gpus: float | None = None) -> None:
        """Starts Ray on this machine, or joins the cluster that RAY_ADDRESS names; then the engines. make: an engine's
        table, called in its process. Raises UserError."""
        self._make, self._file, self._store = make, store / "replicas", store
        self._own = "RAY_ADDRESS" not in os.environ
        ended = signal.getsignal(signal.SIGTERM)
        self._file.write_text(f"{wanted}\n")
        self._wanted = wanted
        self._wires: dict[str, Handle] = {}
        try:
            _join() if not self._own else _start()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ended)  # Ray has put its own there
            self._gpus = ray.cluster_resources().get("GPU", 0.0) if gpus is None else gpus
            self.follow()
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def wanted(self) -> int:
        """At least one. What cannot be read changes nothing."""
        with contextlib.suppress(OSError, ValueError):
            self._wanted = min(max(int(self._file.read_text()), 1), MOST)
        return self._wanted

    def wires(self) -> list[Handle]:
        return list(self._wires.values())

    def follow(self) -> None:
        """Starts those that are missing, without waiting for them; and finds those that others started."""
        there = {name for name in serve.status().applications if NUMBER.fullmatch(name)}
        missing = sorted({NAME.format(number) for number in range(self.wanted)} - there, key=_number)
        if missing:
            log.info("starting %s", ", ".join(missing))
            targets = [RunTarget(self._application(name), name=name, route_prefix=None) for name in missing]
            serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        there.update(missing)
        self._wires = {name: self._wires.get(name) or Handle(name) for name in sorted(there, key=_number)}

    def is_wanted(self, name: str) -> bool:
        return _number(name) < self.wanted

    def dismiss(self, name: str) -> None:
        if wire := self._wires.pop(name, None):
            wire.close()
        serve.delete(name)

    def close(self) -> None:
        """Where Ray was started here, all of it ends; a cluster that was joined goes on without this page."""
        for wire in self.wires():
            wire.close()
        with contextlib.suppress(Exception):
            if self._own and ray.is_initialized():
                serve.shutdown()
        ray.shutdown()

    def _wait(self) -> None:
        """Until one engine answers."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            for wire in self.wires():
                with contextlib.suppress(Away):
                    wire.call("about", patience=5.0)
                    return
            states = serve.status().applications
            failed = [one for name in self._wires if (one := states.get(name)) and one.status == "DEPLOY_FAILED"]
            if failed:
                raise UserError(
                    f"No engine could be started, so nobody is served: {failed[0].message.splitlines()[-1]}"
                )
        raise UserError(f"No engine was ready after {READY_S:.0f} s, so nobody is served; look into Ray's logs.")

    def _application(self, name: str) -> Any:
        share = self._gpus / max(self.wanted, 1)
        options: dict[str, Any] = {
            "num_cpus": 0.01,  # whoever says how many engines there are knows the machine
            "num_gpus": 1 if share >= 1 else round(share - 0.0005, 3) if share else 0,
            "runtime_env": {"env_vars": _environment(self._store, name, self.wanted)},
        }
        return (
            serve.deployment(Served)
            .options(
                name="engine",
                num_replicas=1,
                max_ongoing_requests=CALLS,
                max_queued_requests=WAITING,
                ray_actor_options=options,
                health_check_period_s=HEALTH_S,
                health_check_timeout_s=HEALTH_TIMEOUT_S,
                graceful_shutdown_wait_loop_s=0.2,
                graceful_shutdown_timeout_s=END_S,
            )
            .bind(self._make)
        )


def _number(name: str) -> int:
    found = NUMBER.fullmatch(name)
    return int(found[1]) if found else 0


def _environment(store: Path, name: str, engines: int) -> dict[str, str]:
    """Of an engine's process: a share of the cores, folders where everybody finds what is shared, and our own code."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // engines))),
        "TMPDIR": str(store / "tmp" / name),
        "GRADIO_TEMP_DIR": os.environ["GRADIO_TEMP_DIR"],
        "PYTHONPATH": path,
    }


def _start() -> None:
    """Ray on this machine, on ports of its own, for this process alone."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=128 << 20,  # nothing of a stream lies there
        namespace="vamba",
    )
    serve.start(proxy_location="Disabled")


def _join() -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, namespace="vamba")
        serve.start(proxy_location="Disabled")
    except (ConnectionError, RayError) as error:
        raise UserError(
            f"The Ray cluster at {os.environ['RAY_ADDRESS']} cannot be joined, so nothing was started; start it, or "
            "unset RAY_ADDRESS to use this machine alone."
        ) from error
