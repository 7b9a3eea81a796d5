"""`python -m fastai_heads`: the demo, the archs there are, where one is cut, and what a bundle answers.

Each command imports what it needs: an ONNX file is served without torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fastai_heads.errors import HeadsError
from fastai_heads.serve.limits import Limits


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
    run.add_argument("--epochs", type=_at_least_one)
    run.add_argument("--scenes", type=_at_least_one, default=2400)
    run.add_argument("--seed", type=int, default=0)
    run.set_defaults(run=_demo)
    names = commands.add_parser("archs", help="the archs that can be cut")
    names.add_argument("pattern", nargs="?", default="*", help="with * and ?, as in 'resnet*'")
    names.set_defaults(run=_archs)
    cut = commands.add_parser("cut", help="what can be tapped in an arch, and what a cut takes off")
    cut.add_argument("arch")
    cut.set_defaults(run=_cut)
    predict = commands.add_parser("predict", help="write what a bundle says of every image of a folder to a table")
    _add_source(predict)
    predict.add_argument("folder", type=Path, help="of images")
    predict.add_argument("--out", type=Path, default=Path("predictions.csv"))
    predict.add_argument("--bs", type=_at_least_one, default=32)
    predict.add_argument("--overwrite", action="store_true", help="take the place of a table that is there")
    predict.set_defaults(run=_predict)
    _add_serve(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction) -> None:
    serve = commands.add_parser("serve", help="answer requests: one call for every head, a page, the v2 protocol")
    _add_source(serve)
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: everybody who reaches this machine")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--workers", type=_at_least_one, default=1, help="processes, each with the network")
    serve.add_argument("--name", help="of the model; by default that of the folder or file")
    limits = serve.add_argument_group("limits")
    for field in fields(Limits):
        told = f"{field.metadata['told']} ({field.default:,})"
        limits.add_argument(f"--{field.name}", type=type(field.default), default=field.default, metavar="N", help=told)
    serve.set_defaults(run=_serve)


def _add_source(parser: argparse.ArgumentParser) -> None:
    "Add what a predictor is opened by."
    parser.add_argument("bundle", type=Path, help="what save_bundle wrote, or an ONNX file of export_onnx")
    parser.add_argument("--heads", type=_names, help="with commas; by default all")
    parser.add_argument("--device", default="cpu", help="where a bundle's network computes")


def _demo(options: argparse.Namespace) -> None:
    from fastai_heads.demo import EPOCHS, demo

    demo(options.out, epochs=options.epochs or EPOCHS, scenes=options.scenes, seed=options.seed)


def _archs(options: argparse.Namespace) -> None:
    from fastai_heads.archs.registry import list_archs

    print("\n".join(list_archs(options.pattern)))


def _cut(options: argparse.Namespace) -> None:
    from fastai_heads.bodies.points import cut_points

    print(cut_points(options.arch))


def _predict(options: argparse.Namespace) -> None:
    from fastai_heads.export.folder import predict_to_csv
    from fastai_heads.export.predictor import open_predictor

    predictor = open_predictor(options.bundle, options.device)
    answered, failed = predict_to_csv(
        predictor, options.folder, options.out, options.heads, options.bs, options.overwrite
    )
    print(f"wrote {options.out}: {answered} images" + (f", and {failed} that cannot be read" if failed else ""))


def _serve(options: argparse.Namespace) -> None:
    from fastai_heads.serve.run import serve

    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    serve(
        options.bundle, options.host, options.port, options.workers, options.heads, options.name, options.device, limits
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _at_least_one(text: str) -> int:
    "Read a number that counts something; argparse says what was expected and found."
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
