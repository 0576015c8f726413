"""The command line: `attnwatch demo`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_FEWEST_DEMO_STEPS = 120  # before that the diagnosis claims nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="attnwatch", description="Watch attention during training.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train a small Llama twice, once with a fault, and tell the two apart")
    demo.add_argument("--out", type=Path, default=Path("attnwatch-demo"), help="where TensorBoard files go")
    demo.add_argument("--steps", type=_demo_steps, default=240, help="training steps of each run (default: 240)")
    demo.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return _demo(options)


def _demo(options: argparse.Namespace) -> int:
    try:
        from attnwatch.demo import run_demo
    except ImportError as error:
        print(f"attnwatch demo needs more packages: pip install 'attnwatch[all]' ({error})", file=sys.stderr)
        return 2
    return 0 if run_demo(options.out, steps=options.steps, seed=options.seed) else 1


def _demo_steps(text: str) -> int:
    steps = int(text)
    if steps < _FEWEST_DEMO_STEPS:
        raise argparse.ArgumentTypeError(f"at least {_FEWEST_DEMO_STEPS} steps: before, nothing can be judged")
    return steps


if __name__ == "__main__":
    sys.exit(main())
