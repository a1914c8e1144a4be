"""A visitor's conversation and stream as files of their own: Markdown to read, JSON for programs, captions for players,
CSV for sheets. Nothing is sent anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from app.live.view import Turn, View
from pipeline import csv_table, in_order, markdown_text, mmss, srt, vtt

TOLD = ("chapter", "alert", "caption", "speech", "text", "sound")  # kinds of event for who reads
COSTS = ("model", "at_s", "ms_per_frame", "state_bytes", "memory_bytes")


def as_json(view: View) -> str:
    """Every question with every model's answer to it, the marks included, what happened when, and what chunks cost;
    times in seconds."""
    models = {name: [_turn(turn) for turn in turns] for name, turns in zip(view.names, view.conversations)}
    seen: dict[str, Any] = {"events": [asdict(event) for event in in_order(view.events)]}
    seen["rules"] = [asdict(rule) for rule in view.rules]
    seen["costs"] = {model.name: [sample._asdict() for sample in model.samples] for model in view.models}
    return json.dumps({"video": view.file_name, "conversations": models} | seen, indent=2, ensure_ascii=False)


def _turn(turn: Turn) -> dict[str, Any]:
    answer = turn.answer
    told: dict[str, Any] = {
        "question": turn.question,
        "about": turn.at,
        "video": turn.stream,
        "marked_wrong": turn.wrong,
    }
    if turn.error:
        return {**told, "error": turn.error}
    if answer is None:
        return {**told, "answer": None}
    evidence = [{"time": one.time, "start": one.start, "end": one.end, "weight": one.weight} for one in answer.evidence]
    return {
        **told,
        "answer": answer.text,
        "stopped": answer.stopped,
        "seen_until": answer.seen_until,
        "mode": answer.basis.mode,
        "basis": answer.basis.words,
        "evidence": sorted(evidence, key=lambda one: one["time"]),
    }


def as_markdown(view: View) -> str:
    """The same to read."""
    parts = [f"# Vamba Live: {markdown_text(view.file_name)}" if view.file_name else "# Vamba Live"]
    for name, turns in zip(view.names, view.conversations):
        if turns:
            parts += [f"## {markdown_text(name)}", *map(_told, turns)]
    told = [event for event in in_order(view.events) if event.kind in TOLD and event.text]
    if told:
        lines = [f"- {mmss(event.time)} {event.kind}: {markdown_text(event.text)}" for event in told]
        parts += ["## What happened", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def as_vtt(view: View) -> str:
    """What was seen as captions that players and browsers show (WebVTT)."""
    return vtt(view.events, view.seen_until)


def as_srt(view: View) -> str:
    """The same for players that know no WebVTT (SubRip)."""
    return srt(view.events, view.seen_until)


def as_csv(view: View) -> str:
    """What every chunk cost every model: second of the video, milliseconds a frame, bytes held after it."""
    samples = [(model.name, sample) for model in view.models for sample in model.samples]
    return csv_table([dict(zip(COSTS, (name, *sample))) for name, sample in samples], COSTS)


def _told(turn: Turn) -> str:
    about = f" (about {mmss(turn.at)})" if turn.at is not None else ""
    lines = [f"**{markdown_text(turn.question)}**{about}"]
    answer = turn.answer
    if turn.error:
        lines.append(markdown_text(turn.error))
    elif answer is None:
        lines.append("Not answered yet.")
    else:
        times = ", ".join(mmss(one.time) for one in sorted(answer.evidence, key=lambda one: one.time))
        facts = [f"seen until {mmss(answer.seen_until)}", *([f"rests on {times}"] if times else [])]
        facts += [markdown_text(f"{answer.basis.mode}: {answer.basis.words}")] if answer.basis.words else []
        facts += ["stopped"] if answer.stopped else []
        lines += [markdown_text(answer.text) or "…", f"_{'; '.join(facts)}_"]
    return "\n\n".join([*lines, *(["Marked as wrong."] if turn.wrong else [])])
