"""``attnlens bench``: what recording costs, against plain generation and the eager way."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attnlens.cli.arguments import at_least, write_json
from attnlens.errors import InputError


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "bench",
        help="measure what recording costs in time and memory",
        description="Generate with a random-weight Qwen2.5-VL: plain, under attnlens.record, and "
        "the eager way with output_attentions and output_hidden_states kept. Runs are "
        "interleaved; medians are printed as ratios to plain.",
    )
    parser.add_argument(
        "--size",
        default="small",
        choices=("small", "7b"),
        help="small: 8 layers of width 1024, float32; 7b: 28 of 3584, bfloat16 (small)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    parser.add_argument(
        "--visual",
        dest="visual_tokens",
        type=int,
        default=1024,
        metavar="N",
        help="visual tokens (1024)",
    )
    parser.add_argument("--new", type=int, default=256, metavar="N", help="new tokens (256)")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="timed runs of each (5)"
    )
    parser.add_argument(
        "--context",
        nargs="*",
        type=int,
        default=[256, 1024, 4096],
        metavar="N",
        help="numbers of visual tokens for the cost of a step (256 1024 4096); empty for none",
    )
    parser.add_argument(
        "--interventions",
        action="store_true",
        help="measure what inserting visual tokens costs, too",
    )
    parser.add_argument(
        "--no_recording",
        action="store_true",
        help="leave the table of recording out, where only --context or --interventions is asked",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures here too")
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Measure and print."""
    from attnlens.files import check_file

    at_least("visual", options.visual_tokens, 1)
    at_least("new", options.new, 2)
    at_least("repeats", options.repeats, 1)
    if any(n < 1 for n in options.context):
        raise InputError(f"--context {min(options.context)}: give at least 1 visual token")
    if options.json is not None:
        check_file(Path(options.json))
    from attnlens.benchmark.recording import by_context
    from attnlens.models.load import find_device

    device = str(find_device(options.device))
    result: dict[str, Any] = {}
    if not options.no_recording:
        result = _compare(options, device)
    if options.context:
        result["by_context"] = by_context(
            options.size,
            device=device,
            visuals=tuple(options.context),
            repeats=options.repeats,
        )
        print(f"{'visual':>8}{'plain ms':>10}{'recorded':>10}{'ratio':>8}{'spread':>8}   a step")
        for row in result["by_context"]:
            print(
                f"{row['visual']:>8}{row['plain']:>10.2f}{row['recorded']:>10.2f}"
                f"{row['ratio']:>8.3f}{row['spread']:>8.3f}"
            )
    if options.interventions:
        from attnlens.benchmark.interventions import LIMITS, compare_interventions

        result["interventions"] = compare_interventions(
            options.size,
            device=device,
            visual=options.visual_tokens,
            new=options.new,
            repeats=options.repeats,
        )
        for name, what in LIMITS.items():
            rounds = result["interventions"]["rounds"][name]
            print(
                f"{what:73}{result['interventions'][name]:>8.3f}"
                f"  ({min(rounds):.3f} to {max(rounds):.3f})"
            )
    if options.json is not None:
        write_json(options.json, result)
    return 0


def _compare(options: argparse.Namespace, device: str) -> dict[str, Any]:
    from attnlens.benchmark.recording import compare
    from attnlens.benchmark.variants import VARIANTS

    result = compare(
        options.size,
        device=device,
        visual=options.visual_tokens,
        new=options.new,
        repeats=options.repeats,
    )
    print(
        f"{options.visual_tokens} visual tokens, {options.new} new tokens, {device}, "
        f"{result['threads']} threads, median of {options.repeats}"
    )
    print(f"{'':10}{'seconds':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}{'rise MiB':>10}")
    for way in VARIANTS:
        print(
            f"{way:10}{result['seconds'][way]:>10.2f}{result['time_ratio'][way]:>8.3f}"
            f"{result['peak_mib'][way]:>10.0f}{result['memory_ratio'][way]:>8.3f}"
            f"{result['rise_mib'][way]:>10.0f}"
        )
    print(
        "tokens with recording equal tokens without: " + ("yes" if result["same_tokens"] else "NO")
    )
    return result
