"""``attnlens families``: which checkpoints can be looked into."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the subcommand's options."""
    parser = commands.add_parser(
        "families",
        help="list the model families that can be looked into",
        description="List the model families whose checkpoints attnlens.load reads, by the "
        "model_type in their config.json, and what has been verified for each.",
    )
    parser.set_defaults(run=run_families)


def run_families(options: argparse.Namespace) -> int:
    """Print the table."""
    from attnlens.models.families import FAMILIES

    print(
        f"{'family':20}{'model_type':18}{'recording':11}{'COPY, ROUTE':13}{'video':7}transformers"
    )
    for family in FAMILIES.values():
        insertion = "refused" if family.no_insertion else "yes"
        print(
            f"{family.name:20}{family.model_type:18}{'yes':11}{insertion:13}"
            f"{'yes' if family.videos else '-':7}{family.verified_with}"
        )
    for family in FAMILIES.values():
        if family.no_insertion:
            print(f"{family.name}: {family.no_insertion}")
    print("any other: recorded after a probe on the model itself (docs/families.md)")
    return 0
