"""`python -m pipeline fidelity MODEL`: how far a Vamba strays from its exact answers where it saves memory or time.

A video is watched, given or made up. Every question is answered greedily from the whole memory in the model's own type.
Then answers that read some frames only, memory in 8 bits, weights in 8 bits and products in 8-bit floating point are
led along the same words, so that one slip does not spoil what follows, and their logits are held against the exact ones
at every word. What a user would see follows from it: a greedy answer is the same as long as the likeliest word is.
Beside them stands the same network in fp32 (one of fp32: in bf16), which tells how far the type itself strays.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.layers.fp8 import to_fp8
from pipeline.layers.hash_tokenizer import HashTokenizer
from pipeline.memory.memory import Memory
from pipeline.models.load import load
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, Question, UserError, VideoChunk
from pipeline.towers.qwen import QwenVision, as_tower
from pipeline.weights.checkpoint import DTYPES

QUESTIONS = (
    "What is happening now?",
    "Describe the video so far.",
    "When does the picture change?",
    "What was there at the beginning?",
    "Is there anything red?",
    "How many scenes were there?",
)
CHUNK = 64
PICTURE = (168, 224)  # of the made-up video: height, width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Vamba checkpoint's folder or name")
    parser.add_argument("--video", metavar="FILE", help="what to watch (default: made-up scenes)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of made-up scenes (default: 2)")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures per second of video (default: 1)")
    parser.add_argument("--question", action="append", help="what to ask; may be given several times")
    parser.add_argument("--retrieve", type=int, nargs="*", default=[4, 16, 64], metavar="N", help="frames to read")
    parser.add_argument("--max-tokens", type=int, default=16, help="words of each answer (default: 16)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="what to compute in (default: the checkpoint's own)")
    parser.add_argument("--device", help="where to compute (default: the GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    """Prints a table and a last line of JSON."""
    if args.max_tokens < 1 or min(args.retrieve, default=1) < 1 or not args.minutes > 0 or not 0 < args.fps <= 60:
        raise UserError("Nothing can be measured with a number that is not positive; choose larger ones.")
    model = load(args.model, args.device, args.dtype)
    if not isinstance(model, VambaModel):
        raise UserError("Only a Vamba checkpoint can save in these ways, so there is nothing to compare; name one.")
    with contextlib.closing(_video(args, model)) as frames:
        seen = list(frames)
    questions = [Question(text) for text in args.question or QUESTIONS]
    report = measure_fidelity(model, seen, questions, args.retrieve, args.max_tokens, _others(args, model))
    print(fidelity_table(report))
    print(json.dumps(report))
    return 0


def _others(args: argparse.Namespace, model: VambaModel) -> dict[str, Callable[[], VambaModel]]:
    """The same checkpoint loaded otherwise. The last one changes the model's own network, so that it runs on every
    machine (`load` refuses fp8 where it would be slow) and is not loaded once more."""

    def loaded(dtype: str | None, **options: Any) -> VambaModel:
        found = load(args.model, args.device, dtype, **options)
        assert isinstance(found, VambaModel)  # the same checkpoint
        return found

    own = model.net.model.embed_tokens.weight.dtype
    other = "bfloat16" if own in (torch.float32, torch.float64) else "float32"
    return {
        "weights in 8 bits": lambda: loaded(args.dtype, int8=True),
        f"in {other}": lambda: loaded(other),
        "products in 8-bit floating point": lambda: _in_fp8(model),
    }


def _in_fp8(model: VambaModel) -> VambaModel:
    """With eyes that have recorded nothing yet."""
    assert isinstance(model.vision, QwenVision)  # of a checkpoint
    to_fp8(model.net)
    eyes = QwenVision(as_tower(model.net.visual), model.vision.patching, model.vision.long_side)
    return VambaModel(model.net, eyes, model.tokenizer, block_slots=model.block_slots)


def _video(args: argparse.Namespace, model: VambaModel) -> Generator[Frame, None, None]:
    if args.video is None:
        yield from scenes(round(args.minutes * 60 * args.fps), args.fps)
        return
    import pipeline

    with pipeline.open_video(args.video, fps=args.fps, long_side=model.long_side) as video:
        yield from video


def scenes(count: int, fps: float = 1.0, seed: int = 0) -> Iterator[Frame]:
    """Made-up pictures: every few seconds other coarse colours, and a square that moves over them."""
    chance, (height, width) = np.random.default_rng(seed), PICTURE
    coarse, until = np.zeros((0, 0, 3), np.uint8), 0
    for i in range(count):
        if i >= until:
            coarse, until = chance.integers(0, 256, (6, 8, 3), np.uint8), i + int(chance.integers(4, 16))
        picture = coarse.repeat(height // 6, 0).repeat(width // 8, 1).copy()
        x, y = 5 * i % (width - 40), 3 * i % (height - 40)
        picture[y : y + 40, x : x + 40] = chance.integers(0, 256, 3)
        yield Frame(picture, i / fps)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_fidelity(
    model: VambaModel,
    frames: Sequence[Frame],
    questions: Sequence[Question],
    retrieve: Sequence[int],
    words: int,
    others: Mapping[str, Callable[[], VambaModel]] | None = None,
) -> dict[str, Any]:
    """The figures as one JSON-able document. others: by the name of their row, further models, each made when its turn
    comes; the last may change `model`'s own network.

    One memory at a time: two may not fit.
    """
    exact, rows = _variant(model), []
    memory = _watched(exact, frames)
    answers = [_answer(exact, question, memory, words) for question in questions]
    found = {"slots": len(memory), "memory_bytes": memory.nbytes}

    def add(what: str, variant: VambaModel, memory: Memory) -> None:
        rows.append({"what": what, "memory_bytes": memory.nbytes, **_followed(variant, questions, memory, answers)})

    for count in (n for n in retrieve if n < len(frames)):
        add(f"reads {count:,} of {len(frames):,} frames", _variant(model, retrieve=count), memory)
    del memory
    eight = _variant(model, eight_bit=True)
    add("memory in 8 bits", eight, _watched(eight, frames))
    for what, make in (others or {}).items():
        other = _variant(make())
        add(what, other, _watched(other, frames))
    sure = float(torch.cat([logits.softmax(-1).amax(-1) for _, logits in answers]).mean())
    conditions = {"model": model.name, "backend": exact.backend, "frames": len(frames), **found}
    return conditions | {"questions": len(questions), "words": words, "sure": sure, "rows": rows}


def _variant(model: VambaModel, **options: Any) -> VambaModel:
    tokenizer = model.tokenizer
    if tokenizer is None:  # a checkpoint for tests; any ids are questions to it
        tokenizer = HashTokenizer(model.net.cfg.vocab)
    return VambaModel(model.net, model.vision, tokenizer, block_slots=model.block_slots, **options)


def _watched(model: VambaModel, frames: Sequence[Frame]) -> Memory:
    state, todo = model.start(), iter(frames)
    while chunk := tuple(itertools.islice(todo, CHUNK)):
        state = model.watch(VideoChunk(chunk), state)
    return model._flushed(state).inner.memory


def _answer(model: VambaModel, question: Question, memory: Memory, words: int) -> tuple[list[int], Tensor]:
    """The greedy answer of so many tokens, its end passed over, and the logits (words, V) each was chosen by."""
    decoder, logits = model._read(question, memory)
    ids, steps = [], []
    for _ in range(words):
        steps.append(logits.double().cpu())
        ids.append(int(logits.argmax()))
        logits = decoder.feed([ids[-1]])
    return ids, torch.stack(steps)


def _followed(
    model: VambaModel, questions: Iterable[Question], memory: Memory, answers: Iterable[tuple[list[int], Tensor]]
) -> dict[str, float]:
    """How the model's logits along the exact answers compare with the exact ones, over all questions."""
    pairs = []
    for question, (ids, exact) in zip(questions, answers):
        decoder, logits = model._read(question, memory)
        steps = [logits.double().cpu(), *(decoder.feed([token]).double().cpu() for token in ids[:-1])]
        pairs.append((torch.stack(steps), exact))
    return compared(pairs)


def compared(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Figures of (logits, exact logits), each (words, V), one pair a question.

    difference: root mean square, in standard deviations of the exact logits over the vocabulary. kl: Kullback-Leibler
    divergence from the exact distribution, mean over words, in nats. top1: share of words whose likeliest token is the
    exact one. first, answers: the same of the first word, and of all words of an answer at once.
    """
    ours, exact = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    same = [(a.argmax(-1) == b.argmax(-1)) for a, b in pairs]
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean()
    log_p, log_q = exact.log_softmax(-1), ours.log_softmax(-1)
    return {
        "difference": float(((ours - exact).square().mean() / spread).sqrt()),
        "kl": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "top1": float(torch.cat(same).double().mean()),
        "first": sum(bool(s[0]) for s in same) / len(same),
        "answers": sum(bool(s.all()) for s in same) / len(same),
    }


def fidelity_table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']}: {report['questions']} questions of {report['words']} words to {report['frames']:,} frames "
        f"({report['slots']:,} slots); the exact answer gives its words {report['sure']:.0%} on average",
        f"{'':<33} {'difference':>10} {'KL':>9} {'same word':>10} {'same first':>11} {'same answer':>12}",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['what']:<33} {row['difference']:>10.2e} {row['kl']:>9.2e} {row['top1']:>10.0%} "
            f"{row['first']:>11.0%} {row['answers']:>12.0%}"
        )
    return "\n".join(lines)
