"""The bench's documents for people: one table a size."""

from __future__ import annotations

from typing import Any

from pipeline.bench.embedded import RATIOS

ROWS = {
    "question": "the question in one pass, with evidence",
    "question_without_evidence": "the same without evidence, launch by launch",
    "first_token": "first token of an answer, all in",
    "token": "a later token of an answer, all in",
    "token_without_evidence": "a later token without evidence, launch by launch",
}


ROUNDING = (
    "logits {rms_in_std:.1%} of their std from the exact ones (most {most_in_std:.1%}), "
    "the same word {same_word:.0%} of {words} times, the same answer for {same_answer_for} words"
)
BASELINES = {"baseline": "Qwen2-VL in chunks", "one_pass": "Qwen2-VL in one pass"}


def published_table(document: dict[str, Any]) -> str:
    """The document for people: what, measured, floor, ratio."""
    lines = [f"{name} {rate:.3g}" for name, rate in document["machine"].items()]
    lines += [f"{'':<66} {'measured':>12} {'floor':>12} {'ratio':>7}"]
    lines += _of_vamba(document["vamba"])
    for part in ("tower", "all_in"):
        lines += _of_part(f"{part.replace('_', ' ')}: ", document[part] or {})
    for part, name in BASELINES.items():
        lines += _of_stream(f"{name}: ", document[part])
    for part, name in BASELINES.items():
        for row in document[f"vamba_over_{part}"]:
            above = f", memory above weights {row['above_weights']:.2f}x" if "above_weights" in row else ""
            lines.append(f"Vamba / {name} at {row['frames']:,} frames: time {row['watch']:.2f}x{above}")
    lines += _of_mixers(document.get("mixers") or {})
    if found := document.get("rounding"):
        what = "fp8: " if document["vamba"].get("fp8") else "weights in 8 bits: "
        lines.append(what + (found.get("stopped") or ROUNDING.format(**found)))
        if own := found.get("own"):
            lines.append("the model's own type beside fp32: " + ROUNDING.format(**own))
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in document["conditions"].items())])


def _of_vamba(found: dict[str, Any]) -> list[str]:
    lines = _of_stream("Vamba: ", found)
    for mark in found.get("marks", ()):
        at = f"at {mark['frames']:,} frames: "
        lines += [_line(f"{at}a chunk of {n} frames", beside) for n, beside in mark["chunks"].items()]
        lines += [_line(at + words, mark[name]) for name, words in ROWS.items()]
        lines += [f"{at}peak of watching and answering {mark['peak'] / 1e9:.1f} GB"] if mark["peak"] else []
    if found.get("chunk_last_over_first"):
        lines.append(f"Vamba: chunk at the last mark / at the first {found['chunk_last_over_first']:.3f}")
    return lines


def _of_part(name: str, found: dict[str, Any]) -> list[str]:
    lines = [_line(f"{name}a chunk of {n} frames", beside) for n, beside in found.get("chunks", {}).items()]
    lines += [_line(f"{name}{found['frames']:,} frames", found["watch"])] if "watch" in found else []
    return lines + ([name + found["stopped"]] if found.get("stopped") else [])


def _of_stream(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    for row in found.get("watched", ()):
        kept, peak = f"  memory {row['memory_bytes'] / 1e9:.2f} GB", ""
        if row["peak"]:
            peak = f", peak {row['peak'] / 1e9:.1f} GB (weights and what is kept: {row['peak_floor'] / 1e9:.1f} GB)"
        host = f", {row['host_bytes'] / 1e9:.2f} GB of it on the host" if row["host_bytes"] else ""
        lines.append(_line(f"{name}{row['frames']:,} frames watched", row["watch"]) + kept + host + peak)
    return lines + ([name + found["stopped"]] if found.get("stopped") else [])


def _line(what: str, beside: dict[str, float]) -> str:
    def shown(seconds: float) -> str:
        return f"{seconds:10.2f} s" if seconds >= 1 else f"{seconds * 1e3:9.2f} ms"

    return f"{what:<66} {shown(beside['s'])} {shown(beside['floor_s'])} {beside['ratio']:7.2f}"


def mixers_table(document: dict[str, Any]) -> str:
    """The document of `--mixers`."""
    lines = [f"{name} {rate:.3g}" for name, rate in document["machine"].items()]
    lines += [f"{'':<66} {'measured':>12} {'floor':>12} {'ratio':>7}", *_of_mixers(document["mixers"])]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in document["conditions"].items())])


def _of_mixers(found: dict[str, Any]) -> list[str]:
    lines = [f"own and published kernels: {found['stopped']}"] if "stopped" in found else []
    for row in found.get("rows", ()):
        lines += [
            _line(f"one mixer, {row['tokens']:,} tokens, {name} kernels", row[name]) for name in ("own", "published")
        ]
        lines.append(
            f"published / own {row['published_over_own']:.2f}x; apart at most {row['outputs_apart_in_std']:.3f} std, "
            f"states {row['states_apart_in_std']:.3f}"
        )
    return lines


def loading_table(found: dict[str, Any]) -> str:
    """The document of `--loading`."""
    rounded = ", weights to 8 bits" if found["int8"] or found["fp8"] else ""
    lines = [f"{found['bytes'] / 1e9:.1f} GB in {found['files']} files{rounded}"]
    for name, words in {"cold": "files not in the page cache", "warm": "files in it"}.items():
        row = found[name]
        gpu = f", peak GPU memory {row['peak_gpu'] / 1e9:.2f} GB" if "peak_gpu" in row else ""
        lines.append(
            f"{words}: {row['s']:.1f} s, {row['bytes_per_s'] / 1e9:.2f} GB/s, host memory that no file backs "
            f"{row['peak_anonymous'] / 1e9:.2f} GB ({row['before_anonymous'] / 1e9:.2f} before){gpu}"
        )
    return "\n".join(lines)


# --- the embedded size ----------------------------------------------------------------------------------------------

HEAD = f"{'minute':>6} {'ms/chunk':>9} {'floor':>8} {'1st token s':>12} {'floor':>8} {'tokens/s':>9} {'ceiling':>8}"
HEAD += f" {'state MB':>9} {'memory MB':>10}  dropped"


def embedded_table(document: dict[str, Any]) -> str:
    """The document for people."""
    lines = []
    for role in (role for role in ("model", "baseline") if role in document):
        found = document[role]
        lines += [f"{role}: {found['name']} ({found['backend']}), peak RSS {found['peak_rss'] / 1e6:,.0f} MB", HEAD]
        lines += [_mark_line(row) for row in found["rows"]]
        lines += [_notice_line(row) for row in found["rows"] if row.get("notice_over_chunk")]
        lines += [f"  last / first: {_shown(found['growth'])}"] if len(found["rows"]) > 1 else []
        lines += [f"  stopped: {found['stopped']}"] if found["stopped"] else []
        lines += [f"  loaded in {found['load_s']:.1f} s{_upkeep(found)}"]
        lines += [f"  resident: {_resident(found['resident_bytes'])}"]
    lines += [f"model / baseline at minute {r['minute']}: {_shown(r)}" for r in document["model_over_baseline"]]
    if together := document.get("resident_bytes_together"):
        lines += [f"resident with both loaded: {together / 1e6:,.0f} MB"]
    lines += [", ".join(f"{name} {rate:.3g}" for name, rate in document["machine"].items())]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in document["conditions"].items())])


def _resident(stages: dict[str, int | None]) -> str:
    """Megabytes by stage; nothing of a system that does not tell."""
    return ", ".join(f"{name} {held / 1e6:,.0f} MB" for name, held in stages.items() if held is not None)


def _upkeep(found: dict[str, Any]) -> str:
    if "senses_over_none" not in found:
        return ""
    total, largest = (found[key] / 1e6 for key in ("assets_bytes", "largest_asset_bytes"))
    return (
        f", files {total:.0f} MB (largest {largest:.0f} MB), a picture with the senses "
        f"{found['senses_over_none']:.2f}x of one without ({found['picture_cpu_ms']:.1f} ms of processor time)"
        f", keeping the stream {found['kept_over_watched']:.1%} of watching it"
        + (f", encrypted {found['encrypted_over_watched']:.1%}" if "encrypted_over_watched" in found else "")
    )


def _mark_line(row: dict[str, Any]) -> str:
    figures = [
        (row["chunk_ms"], 9, 1),
        (row["chunk_floor_ms"], 8, 2),
        (row["first_token_s"], 12, 3),
        (row["first_token_floor_s"], 8, 3),
        (row["tokens_per_s"], 9, 1),
        (row["tokens_per_s_ceiling"], 8, 0),
        (row["state_bytes"] / 1e6, 9, 2),
        (row["memory_bytes"] / 1e6, 10, 2),
    ]
    cells = [
        f"{value:{width},.{digits}f}" if value is not None else "-".rjust(width) for value, width, digits in figures
    ]
    return f"{row['minute']:>6} {' '.join(cells)}  {row['dropped_note'] or '-'}"


def _notice_line(row: dict[str, Any]) -> str:
    return (
        f"  minute {row['minute']}: shots, captions and five rules take {row['notice_ms']:.2f} ms a chunk, "
        f"{row['notice_over_chunk']:.1%} of watching it"
        + (f"; first word where it is written {first:.3f} s" if (first := row["written_first_s"]) is not None else "")
    )


def _shown(ratios: dict[str, Any]) -> str:
    return ", ".join(f"{key} {ratios[key]:.2f}x" for key in RATIOS if ratios.get(key) is not None)
