"""The command line: `attnwatch demo`, `attnwatch inspect`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_FEWEST_DEMO_STEPS = 120  # before that the diagnosis claims nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="attnwatch", description="Watch attention during training.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="train a small Llama four times: sound, faulty, pruned, with dropped tokens"
    )
    demo.add_argument("--out", type=Path, default=Path("attnwatch-demo"), help="where TensorBoard files go")
    demo.add_argument("--steps", type=_demo_steps, default=240, help="training steps of each run (default: 240)")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command_function=_demo)
    inspect = commands.add_parser(
        "inspect",
        help="judge a run from its saved history or its TensorBoard logs; or look into a model",
        description="Of a run: says what is wrong with it, and where. Exit code: 0; 1 where the run does not converge "
        "or is unstable; 2 where it can't be read. Of a transformers model, with --text: writes a page about what it "
        "attends to, which inputs it relies on, what each layer knows, and how sure it is.",
    )
    inspect.add_argument(
        "run", type=Path, help="a saved AttentionHistory (.npz), a directory with event files, or one with a model"
    )
    inspect.add_argument("--loss-tag", help="name of the training loss in the logs (default: the first usual one)")
    inspect.add_argument("--total-steps", type=int, help="that the run will have, so that more can be foreseen")
    model = inspect.add_argument_group("of a model")
    model.add_argument("--text", type=Path, help="UTF-8; a text, or for classifiers lines: sentence [tab label]")
    model.add_argument("--questions", type=Path, help='JSONL: {"prompt": …, "choices": […], "answer": …}')
    model.add_argument("--sequences", type=_positive, default=32, help="of the text that are looked at (default: 32)")
    model.add_argument("--tokens", type=_positive, default=96, help="of each sequence (default: 96)")
    model.add_argument("--out", type=Path, default=Path("attnwatch-report.html"), help="the page")
    inspect.set_defaults(command_function=_inspect)
    options = parser.parse_args(arguments)
    return options.command_function(options)


def _demo(options: argparse.Namespace) -> int:
    try:
        from attnwatch.demo import run_demo
    except ImportError as error:
        print(f"attnwatch demo needs more packages: pip install 'attnwatch[all]' ({error})", file=sys.stderr)
        return 2
    return 0 if run_demo(options.out, steps=options.steps, seed=options.seed) else 1


def _inspect(options: argparse.Namespace) -> int:
    return _inspect_run(options) if options.text is None else _inspect_model(options)


def _inspect_model(options: argparse.Namespace) -> int:
    from attnwatch.errors import AttnwatchError

    try:
        from attnwatch.report.model_page import write_model_page

        write_model_page(
            options.run,
            options.text,
            options.out,
            questions=options.questions,
            num_sequences=options.sequences,
            num_tokens=options.tokens,
        )
    except (AttnwatchError, ImportError, OSError) as error:
        return _fail(error)
    print(f"Written: {options.out}. It opens in any browser, and loads nothing.")
    return 0


def _inspect_run(options: argparse.Namespace) -> int:
    from attnwatch.errors import AttnwatchError
    from attnwatch.judging import read_run, report
    from attnwatch.utils.messages import printable

    try:
        history = read_run(options.run, loss_tag=options.loss_tag)
        text, diagnosis = report(history, total_steps=options.total_steps)
    except (AttnwatchError, ImportError) as error:
        return _fail(error)
    print(printable(text))
    return int(diagnosis.status.is_alarm)


def _fail(error: Exception) -> int:
    from attnwatch.utils.messages import printable

    print(f"attnwatch inspect: {printable(str(error))}", file=sys.stderr)
    return 2


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _demo_steps(text: str) -> int:
    steps = int(text)
    if steps < _FEWEST_DEMO_STEPS:
        raise argparse.ArgumentTypeError(f"at least {_FEWEST_DEMO_STEPS} steps: before, nothing can be judged")
    return steps


if __name__ == "__main__":
    sys.exit(main())
