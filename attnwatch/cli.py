"""Command line: `attnwatch demo`, `report RUN`, `judge RUN` and `inspect MODEL_DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_WRITTEN = "Written: {}. It opens in any browser and loads nothing."
_PIPE_CLOSED = 141  # as of a program that SIGPIPE has ended
_FEWEST_DEMO_STEPS = 120  # the diagnosis claims nothing before that


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="attnwatch", description="Watch attention during training.")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_report, _add_judge, _add_inspect):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        code = options.command_function(options)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `attnwatch judge RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return code


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small Llama four times and compare the runs",
        description="Train a small Llama on the CPU four times: sound, with a fault, pruned, and with dropped tokens. "
        "Print the monitor's verdict on each run. Exit code: 0 if all verdicts are right, else 1.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("attnwatch-demo"), help="folder for TensorBoard files (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=_demo_steps, default=240, help="training steps of each run (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: %(default)s)")
    parser.set_defaults(command_function=_demo)


def _add_run(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Add the arguments of a command that reads runs."""
    parser.add_argument(
        "runs" if nargs else "run",
        type=Path,
        nargs=nargs,
        metavar="RUN",
        help="saved history (.npz), log of TensorBoard, CSVLogger, W&B, MLflow or trackio, checkpoint of Lightning or "
        "the transformers Trainer, or a folder that contains one of these",
    )
    parser.add_argument("--loss-tag", help="tag of the training loss in the logs (default: the first usual tag)")


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "report",
        help="write a page about one or more training runs",
        description="Write an HTML page about a run: the verdict, what to do, and everything that was recorded. "
        "Several runs are shown side by side, with the first difference between them. The page loads nothing from "
        "elsewhere. Exit code: 0, or 2 if it can't be written.",
    )
    _add_run(parser, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="path of the page (default: %(default)s)")
    parser.set_defaults(command_function=_report)


def _add_judge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "judge",
        help="judge a saved training run, finished or not",
        description="Print the status of a run, what is wrong with it and in which layers, and how the attention of "
        "each layer has changed. Exit code: 0 if the run is sound or at risk; 1 if it does not converge or is "
        "unstable; 2 if there is no verdict, because too little was observed or the run can't be read.",
    )
    _add_run(parser)
    parser.add_argument(
        "--total-steps",
        type=int,
        help="number of steps that the complete run will have, for a better forecast (default: as recorded)",
    )
    parser.set_defaults(command_function=_judge)


def _add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "inspect",
        help="write a page about a saved transformers model",
        description="Write an HTML page about a model: what it attends to, which inputs it relies on, what each layer "
        "knows, and how sure it is. The page loads nothing from elsewhere. Exit code: 0, or 2 if it can't be written.",
    )
    parser.add_argument(
        "directory", type=Path, metavar="MODEL_DIR", help="folder written by save_pretrained, with model and tokenizer"
    )
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        help="UTF-8 file to try the model on: a text for a language model; for a classifier, one sentence a line, "
        "followed by a tab and a label if calibration is wanted",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        help='JSONL file with multiple-choice questions for a language model: {"prompt": …, "choices": […], '
        '"answer": …} (default: made from the text)',
    )
    parser.add_argument(
        "--sequences", type=_positive, default=32, help="number of sequences of the text to use (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=_positive, default=96, help="tokens in each sequence (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("attnwatch-report.html"), help="path of the page (default: %(default)s)"
    )
    parser.set_defaults(command_function=_inspect)


def _demo(options: argparse.Namespace) -> int:
    try:
        from attnwatch.demo import run_demo
    except ImportError as error:
        print(f"attnwatch demo needs more packages: pip install 'attnwatch[all]' ({error})", file=sys.stderr)
        return 2
    return 0 if run_demo(options.out, steps=options.steps, seed=options.seed) else 1


def _report(options: argparse.Namespace) -> int:
    from attnwatch.errors import AttnwatchError
    from attnwatch.runs import read_run

    try:
        from attnwatch.report.run import write_run_page

        write_run_page([read_run(run, loss_tag=options.loss_tag) for run in options.runs], options.out)
    except (AttnwatchError, ImportError) as error:
        return _fail(options, error)
    except OSError as error:
        return _fail(options, _not_written(options.out, error))
    print(_WRITTEN.format(options.out))
    return 0


def _not_written(out: Path, error: OSError) -> str:
    why = error.strerror or error
    return f"`--out`: {str(out)!r} can't be written ({why}); give the path of a file in a folder that you may write to."


def _judge(options: argparse.Namespace) -> int:
    from attnwatch.errors import AttnwatchError
    from attnwatch.judging import exit_code, judge
    from attnwatch.runs import read_run
    from attnwatch.utils.messages import printable

    try:
        run = read_run(options.run, loss_tag=options.loss_tag)
        text, diagnosis = judge(run, total_steps=options.total_steps)
    except (AttnwatchError, ImportError) as error:
        return _fail(options, error)
    print(printable(text))
    return exit_code(diagnosis)


def _inspect(options: argparse.Namespace) -> int:
    from attnwatch.errors import AttnwatchError

    try:
        from attnwatch.report.model_page import write_model_page

        write_model_page(
            options.directory,
            options.text,
            options.out,
            questions=options.questions,
            num_sequences=options.sequences,
            num_tokens=options.tokens,
        )
    except (AttnwatchError, ImportError) as error:
        return _fail(options, error)
    except OSError as error:
        return _fail(options, _not_written(options.out, error))
    print(_WRITTEN.format(options.out))
    return 0


def _fail(options: argparse.Namespace, error: Exception | str) -> int:
    from attnwatch.utils.messages import printable

    print(f"attnwatch {options.command}: {printable(str(error))}", file=sys.stderr)
    return 2


def _positive(text: str) -> int:
    return _at_least(1, text)


def _demo_steps(text: str) -> int:
    return _at_least(_FEWEST_DEMO_STEPS, text, because="; shorter runs can't be judged")


def _at_least(least: int, text: str, *, because: str = "") -> int:
    number = int(text) if text.strip().lstrip("+-").isdecimal() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}{because}")
    return number


if __name__ == "__main__":
    sys.exit(main())
