"""What only explanations and pages need is imported when it is used; a package that is missing is named."""

import importlib
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch

import attnwatch.lightning
from attnwatch.explain import calibration, rank_correlation
from attnwatch.explain.probing.python_code import mark_code
from attnwatch.utils.extras import extra_needed

OPTIONAL = ["attnwatch.explain", "attnwatch.report", "matplotlib", "scipy", "sklearn", "jinja2", "pygments"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "trainer"),
    [
        ("attnwatch", "torch"),
        ("attnwatch.lightning", "lightning.pytorch"),
        ("attnwatch.transformers", "accelerate, transformers.trainer"),
    ],
)
def test_no_more_is_imported_than_the_trainer_imports(module: str, trainer: str):
    code = f"import sys, {trainer}\nbefore = set(sys.modules)\nimport {module}\n"
    code += f"print([name for name in {OPTIONAL} if name in sys.modules.keys() - before])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "[]"


@pytest.mark.slow
def test_explanations_need_no_extra_before_it_is_used():
    code = f"import sys, attnwatch.explain\nprint([name for name in {OPTIONAL[1:]} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert finished.stdout.strip() == "[]", finished.stderr


@pytest.mark.parametrize(
    ("package", "use", "needs"),
    [
        ("scipy.stats", lambda: rank_correlation(torch.rand(2, 4), torch.rand(2, 4)), "a rank correlation"),
        ("scipy.stats", lambda: calibration([0.9, 0.1], [1, 0]), "the AUROC"),
        ("pygments.lexers.python", lambda: mark_code("a"), "a probe of Python code"),
    ],
)
def test_missing_package_of_an_explanation_is_named(monkeypatch, package, use, needs):
    use()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{needs} needs {package}: pip install 'attnwatch\[explain\]'$"):
        use()


@pytest.mark.parametrize(("package", "module"), [("jinja2", "rendering"), ("matplotlib.figure", "charts")])
def test_missing_package_of_the_model_page_is_named(monkeypatch, package, module):
    importlib.import_module(f"attnwatch.report.{module}")
    monkeypatch.delitem(sys.modules, f"attnwatch.report.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"page needs {package}: pip install 'attnwatch\[report\]'"):
        importlib.import_module(f"attnwatch.report.{module}")


def test_error_of_another_kind_stays():
    with pytest.raises(ZeroDivisionError), extra_needed("explain", "it"):
        _ = 1 / 0


def test_callbacks_are_found_by_name():
    assert issubclass(attnwatch.lightning.LayerProbe, pl.Callback)
    with pytest.raises(AttributeError, match=r"module 'attnwatch\.lightning' has no attribute 'LayerProbes'"):
        _ = attnwatch.lightning.LayerProbes
    with pytest.raises(ImportError, match="cannot import name 'LayerProbes'"):
        exec("from attnwatch.lightning import LayerProbes")
