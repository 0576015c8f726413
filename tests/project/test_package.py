"""What importing the package needs and brings."""

import subprocess
import sys

import pytest

EXTRAS = ["lightning", "transformers", "tensorboard", "matplotlib"]


def python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_import_loads_no_extra():
    assert python(f"import sys, attnwatch; print([n for n in {EXTRAS} if n in sys.modules])").strip() == "[]"


LIGHTNING = ("lightning", "lightning.pytorch", "pytorch_lightning")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("import attnwatch.lightning", "pip install 'attnwatch[lightning]'"),
        ("from attnwatch.cli import main; main(['demo'])", "pip install 'attnwatch[all]'"),
    ],
    ids=["lightning", "demo"],
)
def test_missing_extra_is_named(code, remedy):
    code = f"import sys; sys.modules.update(dict.fromkeys({LIGHTNING}))\n{code}"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert finished.returncode != 0 or "main" in code
    assert remedy in finished.stderr
