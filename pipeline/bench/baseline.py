"""The baseline of the bench at the published size: Qwen2-VL-7B's shapes, fed in chunks and in one pass."""

from __future__ import annotations

from typing import Any

from pipeline.bench import floors
from pipeline.bench.floors import bytes_of
from pipeline.bench.machine import OUT_OF_MEMORY, Machine, peak_memory, reset_peak_memory, timed
from pipeline.bench.shapes import ReadyTokens, Shapes, built, frames_of, sizes, watch_to, with_floor
from pipeline.models.transformer import Qwen2VL, TransformerModel
from pipeline.stream import VideoChunk


def measure_baseline(shapes: Shapes, machine: Machine, stops: list[int], per_chunk: int) -> dict[str, Any]:
    """Qwen2-VL watches the same ready tokens in the same chunks with no limit to its keys, as far as they fit."""
    net = _built(shapes, machine)
    eyes = ReadyTokens(shapes, machine, per_chunk)
    model = TransformerModel(net, eyes, None, "Qwen2-VL-7B, published shapes", stops[-1] * shapes.pair_tokens)
    model.watch(VideoChunk(frames_of(shapes, 0, per_chunk)), model.start())
    reset_peak_memory()
    found: dict[str, Any] = {
        "name": model.name,
        "backend": model.backend,
        "weights": bytes_of(net),
        "watched": [],
        "stopped": "",
    }
    state, spent = model.start(), 0.0
    for stop in stops:
        try:
            seconds, state = watch_to(model, state, shapes, stop, per_chunk)
        except OUT_OF_MEMORY:
            found["stopped"] = f"out of memory on the way to {stop:,} frames"
            break
        spent += seconds
        found["watched"].append(_row(net, shapes, machine, stop, spent, state.memory_bytes))
    return found | peak_memory()


def measure_one_pass(shapes: Shapes, machine: Machine, stops: list[int]) -> dict[str, Any]:
    """The same network as `transformers` runs it when it generates: all of a video's tokens in one pass.

    Its own code, cache and choice of torch's attention. Each stop starts anew; the next word's scores come with it.
    """
    net = _built(shapes, machine)
    net.model.set_attn_implementation("sdpa")
    found: dict[str, Any] = {
        "name": "Qwen2-VL-7B, published shapes, one pass",
        "weights": bytes_of(net),
        "watched": [],
        "stopped": "",
    }
    _pass(net, shapes, machine, 2)
    for stop in stops:
        try:
            seconds, kept = _pass(net, shapes, machine, stop)
        except OUT_OF_MEMORY:
            found["stopped"] = f"out of memory at {stop:,} frames"
            break
        found["watched"].append(_row(net, shapes, machine, stop, seconds, kept))
    return found


def _pass(net: Qwen2VL, shapes: Shapes, machine: Machine, frames: int) -> tuple[float, int]:
    """Seconds of a pass over that many frames' tokens, and the bytes of keys and values it leaves."""
    reset_peak_memory()
    seen = ReadyTokens(shapes, machine, frames).tokens(frames_of(shapes, 0, frames))
    assert seen.positions is not None  # three to a token
    places_31T = seen.positions[:, None].to(machine.device)

    def once() -> int:
        out = net.model(inputs_embeds=seen.tokens, position_ids=places_31T, use_cache=True)
        net.lm_head(out.last_hidden_state[:, -1:])
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)

    return timed(once)


def _built(shapes: Shapes, machine: Machine) -> Qwen2VL:
    net = built(machine, lambda: Qwen2VL(shapes.baseline))
    del net.visual  # its tower is measured by itself
    net.finish()
    return net


def _row(net: Qwen2VL, shapes: Shapes, machine: Machine, frames: int, seconds: float, kept: int) -> dict[str, Any]:
    floor = machine.floor_s(floors.baseline_flops(net, frames // 2 * shapes.pair_tokens))
    return {"frames": frames, "watch": with_floor(seconds, floor), **sizes(net, 0, kept)}


def compared(vamba: dict[str, Any], baseline: dict[str, Any]) -> list[dict[str, float]]:
    """Vamba over baseline wherever both have watched as many frames: time, and memory above the weights' (GPU only)."""
    by_frames, ratios = {row["frames"]: row for row in vamba.get("watched", ())}, []
    for row in baseline.get("watched", ()):
        if mine := by_frames.get(row["frames"]):
            found = {"frames": row["frames"], "watch": mine["watch"]["s"] / row["watch"]["s"]}
            if row["above_weights"] and mine["above_weights"]:
                found["above_weights"] = mine["above_weights"] / row["above_weights"]
            ratios.append(found)
    return ratios
