"""``attnlens bench``: what recording costs, against plain generation and the eager way."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
        "--family",
        metavar="NAME",
        help="a random-weight model of this family instead, a model_type of `attnlens families`, "
        "with its own processor and as many pictures as it takes to reach --visual",
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
        "--peers",
        action="store_true",
        help="compare with eager attention, nnsight, TransformerLens and a second pass, too: "
        "time, memory, and the visual mass that each gives",
    )
    parser.add_argument(
        "--peer_sizes",
        nargs="+",
        default=["64x32", "256x128", "1024x256", "4096x1024"],
        metavar="NxM",
        help="visual times new tokens for --peers (64x32 256x128 1024x256 4096x1024)",
    )
    parser.add_argument(
        "--memory_limit",
        type=float,
        default=8.0,
        metavar="GIB",
        help="most memory for each of --peers; one that takes more is not timed (8)",
    )
    parser.add_argument(
        "--no_recording",
        action="store_true",
        help="leave the table of recording out, where only --context, --interventions or --peers "
        "is asked",
    )
    parser.add_argument(
        "--figure", metavar="FILE", help="draw time and memory of --peers here (pdf, svg or png)"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="instead of the above, in less than 10 minutes: whether tokens and masses are right "
        "under every attention implementation that is installed, compiled and with CUDA graphs; "
        "and what recording and replaying cost at the shape of a 7B model, with up to 32,642 keys. "
        "Without a card, a small share of it runs on the CPU",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures here too (with --gpu: gpu.json)"
    )
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Measure and print."""
    from attnlens.files import check_file

    at_least("visual", options.visual_tokens, 1)
    at_least("new", options.new, 2)
    at_least("repeats", options.repeats, 1)
    if any(n < 1 for n in options.context):
        raise InputError(f"--context {min(options.context)}: give at least 1 visual token")
    sizes = [_peer_size(text) for text in options.peer_sizes]
    if options.memory_limit <= 0:
        raise InputError(f"--memory_limit {options.memory_limit}: give more than 0 GiB")
    if options.family is not None and (options.peers or options.interventions):
        other = "--peers" if options.peers else "--interventions"
        raise InputError(f"--family {options.family} with {other}, which measures Qwen2.5-VL alone")
    if options.figure is not None and not options.peers:
        raise InputError(f"--figure {options.figure}: give --peers, which it draws")
    for file in (options.json or ("gpu.json" if options.gpu else None), options.figure):
        if file is not None:
            check_file(Path(file))
    from attnlens.benchmark.model import SHAPES
    from attnlens.benchmark.recording import by_context
    from attnlens.models.load import find_device

    device = str(find_device(options.device))
    if options.gpu:
        return _measure_gpu(device, options.json or "gpu.json")
    if options.family is not None:
        from attnlens.models.small import small_processor

        small_processor(options.family)  # refused before anything is measured
    result: dict[str, Any] = {}
    if not options.no_recording:
        result = _compare(options, device)
    if options.context:
        result["by_context"] = by_context(
            replace(SHAPES[options.size], family=options.family or ""),
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
    if options.peers:
        result["peers"] = _compare_peers(options, device, sizes)
    if options.json is not None:
        write_json(options.json, result)
    if options.figure is not None:
        from attnlens import plots

        plots.save(plots.peers(result["peers"]["rows"]), options.figure)
    return 0


def _measure_gpu(device: str, file: str) -> int:
    from attnlens.benchmark.gpu import measure
    from attnlens.benchmark.gpu_tables import tables

    result = measure(device)
    write_json(file, result)
    print(tables(result))
    print(f"{result['seconds']:.0f} seconds; all figures are in {file}")
    wrong = any(not row["right"] for row in result["checks"])
    return int(wrong or any(part["failed"] for part in result["left_out"]))


def _peer_size(text: str) -> tuple[int, int]:
    """Read ``1024x256``."""
    visual, _, new = text.partition("x")
    if not (visual.isdecimal() and new.isdecimal() and int(visual) >= 1 and int(new) >= 2):
        raise InputError(
            f"--peer_sizes {text!r}: give visual and new tokens, such as 1024x256 (at least 1x2)"
        )
    return int(visual), int(new)


def _compare_peers(
    options: argparse.Namespace, device: str, sizes: list[tuple[int, int]]
) -> dict[str, Any]:
    import torch

    from attnlens._version import versions
    from attnlens.benchmark.peers import compare_peers
    from attnlens.lenses.optional import library

    for name in ("nnsight", "transformer_lens"):
        library(name)  # refused before anything is measured
    rows = compare_peers(
        options.size,
        device=device,
        sizes=sizes,
        repeats=options.repeats,
        limit_mib=options.memory_limit * 1024,
    )
    print(
        f"{'visual':>8}{'new':>6}  {'':18}{'seconds':>9}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}"
        f"{'mass error':>12}  same tokens"
    )
    for row in rows:
        head = f"{row['visual']:>8}{row['new']:>6}  {row['peer']:18}"
        if row["seconds"] is None:
            whose = "plain takes " if row["peak_mib"] is not None else ""
            print(f"{head}  {whose}more than {options.memory_limit:g} GiB of memory")
            continue
        error = "-" if row["mass_error"] is None else f"{row['mass_error']:.1e}"
        print(
            f"{head}{row['seconds']:>9.2f}{row['time_ratio']:>8.3f}{row['peak_mib']:>10.0f}"
            f"{row['memory_ratio']:>8.2f}{error:>12}  {'yes' if row['same_tokens'] else 'NO'}"
        )
    return {
        "rows": rows,
        "size": options.size,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _compare(options: argparse.Namespace, device: str) -> dict[str, Any]:
    from attnlens.benchmark.recording import compare
    from attnlens.benchmark.variants import VARIANTS

    result = compare(
        options.size,
        family=options.family or "",
        device=device,
        visual=options.visual_tokens,
        new=options.new,
        repeats=options.repeats,
    )
    print(
        f"{result['visual']} visual tokens, {options.new} new tokens, {device}, "
        f"{result['threads']} threads, median of {options.repeats}"
        + (f", {options.family}" if options.family else "")
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
