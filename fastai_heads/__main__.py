"""`python -m fastai_heads`: the demo, the archs there are, and where one is cut."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastai_heads.archs.registry import list_archs
from fastai_heads.bodies.points import cut_points
from fastai_heads.demo import EPOCHS, demo
from fastai_heads.errors import HeadsError


def main(
    args: Sequence[str] | None = None,  # of the command line, by default the process's own
) -> int:  # the exit code
    "Runs one command; a refused input is one line and the exit code 2."
    options = _parser().parse_args(args)
    try:
        options.run(options)
    except HeadsError as error:
        print(f"fastai_heads: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fastai_heads", description="One pretrained body, many heads, one fastai Learner.")
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("demo", help="train five heads on real digits, print the table, write the pictures")
    run.add_argument("--out", type=Path, default=Path("demo"), help="folder of the scenes and the pictures")
    run.add_argument("--epochs", type=_at_least_one, default=EPOCHS)
    run.add_argument("--scenes", type=_at_least_one, default=2400)
    run.add_argument("--seed", type=int, default=0)
    run.set_defaults(run=lambda o: demo(o.out, epochs=o.epochs, scenes=o.scenes, seed=o.seed))
    names = commands.add_parser("archs", help="the archs that can be cut")
    names.add_argument("pattern", nargs="?", default="*", help="with * and ?, as in 'resnet*'")
    names.set_defaults(run=lambda o: print("\n".join(list_archs(o.pattern))))
    cut = commands.add_parser("cut", help="what can be tapped in an arch, and what a cut takes off")
    cut.add_argument("arch")
    cut.set_defaults(run=lambda o: print(cut_points(o.arch)))
    return parser


def _at_least_one(text: str) -> int:
    "Read a number that counts something; argparse says what was expected and found."
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
