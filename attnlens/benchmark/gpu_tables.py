"""The results of ``attnlens bench --gpu`` as tables in Markdown: for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attnlens.text import counted


def tables(result: dict[str, Any]) -> str:
    """Write everything that was measured, and what was left out and why.

    Parameters
    ----------
    result
        From ``attnlens.benchmark.gpu.measure``.
    """
    share, versions = result["share"], result["versions"]
    checked, timed = share["checked"], share["timed"]
    machine = result["machine"]
    if result["card"] is None:
        where = (
            f"**No card has seen this**: it ran on a CPU ({machine['cpu']}, "
            f"{counted(machine['threads'], 'thread')})"
        )
    else:
        where = f"On one {result['card']} ({machine['card_memory_mib']:,} MiB)"
    libraries = ", ".join(f"{name} {of}" for name, of in versions.items() if of is not None)
    pieces = [
        f"{where}, in {result['seconds']:.0f} seconds, with {libraries}.",
        f"Right or not, with random weights ({_shape(checked)}), {share['checked_visual']} visual "
        f"tokens or more, {share['new']} generated ones:",
        _table(
            ("way", "dtype", "same tokens", "different tokens", "error, own", "error, eager", ""),
            (
                (
                    row["way"] + ("" if row["family"] == "qwen2_5_vl" else f" ({row['family']})"),
                    row["dtype"],
                    "yes" if row["same_tokens"] else "NO",
                    f"{row['different_tokens']} of {row['tokens']}",
                    f"{row['error_own']:.1e}",
                    f"{row['error_eager']:.1e}",
                    "right" if row["right"] else "WRONG",
                )
                for row in result["checks"]
            ),
        ),
        f"Milliseconds of a decoding step ({_shape(timed)}, {timed['dtype']}, SDPA, "
        f"median of {share['repeats']}):",
        _table(
            ("keys", "plain", "recorded", "ratio", "spread", "peak MiB, plain", "recorded"),
            (
                (
                    f"{row['keys']:,}",
                    f"{row['plain_ms']:.2f}",
                    f"{row['recorded_ms']:.2f}",
                    f"{row['ratio']:.3f}",
                    f"{row['spread']:.3f}",
                    f"{row['plain_peak_mib']:,.0f}",
                    f"{row['recorded_peak_mib']:,.0f}",
                )
                for row in result["overhead"]
            ),
        ),
        f"A known answer of {share['answer']} tokens, fed after {share['visuals'][0]:,} visual "
        "tokens to the same model:",
        _table(
            ("way", "seconds", "tokens a second", "ratio", "spread"),
            (
                (
                    row["way"],
                    f"{row['seconds']:.3f}",
                    f"{row['tokens_a_second']:,.0f}",
                    f"{row['ratio']:.3f}",
                    f"{row['spread']:.3f}",
                )
                for row in result["replay"]
            ),
        ),
    ]
    if result["left_out"]:
        pieces += [
            "Without a result:",
            _table(
                ("what", "why"),
                (
                    (part["part"], ("failed: " if part["failed"] else "") + part["why"])
                    for part in result["left_out"]
                ),
            ),
        ]
    return "\n\n".join(pieces)


def _shape(shape: dict[str, Any]) -> str:
    return (
        f"{counted(shape['layers'], 'layer')} of width {shape['width']}, {shape['heads']} heads, "
        f"{shape['key_heads']} key heads"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
