"""Senses: what a frame's pixels and features say in plain words, each with its certainty and its cost.

Every sense is one file with the same face: `name`; `width`, how many numbers a frame it keeps in the index; `cost_ms`,
a frame on one core; `see(frames, features)` -> (F, width) of these numbers; `say(numbers)` -> [(word, certainty 0..1)],
best first, for some frames of one moment together. A sense that is unsure says nothing.
"""
