"""Senses: what is told beside what the towers name, in plain words. Each is one file with one of two faces.

**Of pictures**, while they are watched (sensed.py): `name`; `width`, how many numbers a frame it keeps in the index;
`cost_ms`, a frame on one core; `see(frames, features)` -> (F, width) of these numbers; `say(numbers)` -> [(word,
certainty 0..1)], best first, for some frames of one moment together.

**Of files**, once they are watched (`stream.LateSense`): what is read or heard comes later than what is seen and never
goes into the state, but into the list of events beside it. `name`; `kinds`, of its events; `cost_s`, processor seconds
an hour of video; `glean(path, stop)` -> how far it has come, with the events found since, one after the other.

chosen.py lists them all and reads `--senses`. A sense that is unsure says nothing.
"""
