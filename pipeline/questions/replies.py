"""What is said without looking at any picture: about the question, the model or the whole video. A sentence each.

Empty where the answer lies in the pictures. Nothing here is generated, and no doubt is worded in other words than
pipeline/training/metrics.py counts.
"""

from __future__ import annotations

from pipeline.clock import mmss
from pipeline.questions.asked import Asked

PLAIN = {
    "talk": "Ask me about the video: what is to be seen, when, where or how many.",
    "about_you": "I am a small model that watches this video picture by picture; I name everyday things, find when "
    "they were there, and say so when I am not sure.",
    "command": "I can do nothing to the video; I only answer questions about it.",
    "correct": "I may have been wrong; name the thing or the second that you mean, and I look again.",
    "followup": "I am not sure what that refers to; please name the thing or the second.",
    "after": "I cannot tell what comes next; I only know what I have seen.",
    "before": "I am not sure before what; please name the thing or the second.",
}


def reply(asked: Asked, continues: bool, end: float) -> str:
    """continues: whether an earlier question is known that this one goes on from. end: the newest second seen."""
    if not asked.readable:
        return "I do not know what is asked; please ask in words."
    if asked.when.unclear:
        return "I am not sure which time is meant; write it like 1:30."
    if not asked.english:
        return "Please ask in English; I understand no other language."
    if asked.length:
        return f"I have seen {mmss(end)} of the video."
    if asked.when.shift is not None and not continues:
        return "I am not sure from which second to count; please name one."
    open_ended = asked.refers or asked.kind in ("talk", "about_you", "command", "correct", "followup")
    named_so = asked.each or asked.names_time or "negated" in asked.cues  # "when nobody is there"
    if continues or named_so or not open_ended:
        return ""
    return PLAIN.get(asked.kind or "", "")


def late(asked: Asked) -> str:
    """That the video has not come so far; the second is said as it was asked."""
    when = asked.when
    first = when.time if when.time is not None else max(when.both) if when.both else (when.stretch or (None,))[0]
    return "" if first is None else f"The video has not reached {mmss(first)} yet."
