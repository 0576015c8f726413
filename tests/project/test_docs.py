"""The documentation: its Python blocks run, its commands and paths exist, and every public name has an entry."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader

import attnwatch
from attnwatch import cli
from attnwatch.callbacks import CALLBACKS
from tests.support.models import seeded
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
README, TUTORIAL = ROOT / "README.md", DOCS / "tutorial.md"
GUIDES = sorted((DOCS / "how-to").glob("*.md"))
PAGES = [README, *sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FRAGMENT = "{.python .fragment}"
KINDS = (attnwatch.Statistic, attnwatch.LayerStatistic, attnwatch.ModelFamily, attnwatch.Check)
STEPS, LENGTH = 16, 24
VOCABULARY = 256 + 3

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.logs_warnings]


class Block(NamedTuple):
    """A fenced block of a page; `line` is that of its fence."""

    line: int
    info: str
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, found.start()) + 1, found["info"], found["code"])


def run(page: Path, namespace: dict[str, Any]) -> None:
    """Run the Python blocks of a page one after the other, with the line numbers of the page."""
    for block in blocks(page):
        if block.info == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)


def build_model() -> hf.PreTrainedModel:
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
    )
    return seeded(lambda: hf.LlamaForCausalLM(config)).train()


def build_classifier() -> hf.PreTrainedModel:
    config = hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return seeded(lambda: hf.BertForSequenceClassification(config)).eval()


def build_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


class Module(pl.LightningModule):
    """The tiny model, with a metric of its own."""

    def __init__(self):
        super().__init__()
        self.model = build_model()

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", self.model(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.fixture
def namespace() -> dict[str, Any]:
    """What the pages take as given: a model, data, and what trains it."""
    model, tokenizer = build_model(), build_tokenizer()
    ids = tokenizer(LINES, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    dataset = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    data = DataLoader(dataset, batch_size=4)
    batches = list(data)
    labelled = [{"input_ids": batch["input_ids"], "labels": batch["input_ids"][:, 0] % 2} for batch in batches]
    return {
        "__name__": "docs",
        "batch": batches[0],
        "batches": batches,
        "build_model": build_model,
        "classifier": build_classifier(),
        "data": data,
        "dataset": dataset,
        "labelled_batches": labelled,
        "language_model": build_model(),
        "model": model,
        "module": Module(),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "tokenizer": tokenizer,
        "validation_data": DataLoader(dataset, batch_size=8),
    }


LINES = [f"def function_{number}(self): return {number * 7}  # in line {number}" for number in range(16)]


@pytest.fixture
def _here(tmp_path, monkeypatch):
    """A folder of its own, with a saved history."""
    monkeypatch.chdir(tmp_path)
    model = build_model()
    with attnwatch.AttentionRecorder(model, every_n_steps=1) as recorder, recorder.step(0):
        model(torch.ones(2, 8, dtype=torch.int64))
    recorder.history().save("attention.npz")


@pytest.fixture(autouse=True)
def _plugins_are_forgotten():
    """Unregister what a page registers."""
    before = {kind: set(kind.registry) for kind in KINDS}
    yield
    for kind, names in before.items():
        for name in set(kind.registry) - names:
            attnwatch.unregister(kind.registry[name])


@pytest.fixture
def _short_trainings(monkeypatch):
    """Trainers of the pages stop after a few steps."""
    shorten(monkeypatch, pl.Trainer, max_steps=STEPS, accelerator="cpu", enable_progress_bar=False)
    shorten(monkeypatch, hf.TrainingArguments, max_steps=STEPS, use_cpu=True, disable_tqdm=True)


def shorten(monkeypatch: pytest.MonkeyPatch, made: type, **changed: Any) -> None:
    init = made.__init__
    monkeypatch.setattr(made, "__init__", lambda self, *args, **options: init(self, *args, **options | changed))


@pytest.mark.usefixtures("_here", "_short_trainings")
@pytest.mark.parametrize(
    "page",
    [README, *(pytest.param(page, marks=pytest.mark.slow) for page in (TUTORIAL, *GUIDES))],
    ids=lambda page: page.stem,
)
def test_python_blocks_run(page, namespace):
    run(page, namespace)


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
def test_the_tutorial_ends_as_it_says(namespace):
    run(TUTORIAL, namespace)
    assert namespace["monitor"].diagnosis.status == "healthy"
    assert namespace["faulty_monitor"].diagnosis.status == "not_converging"
    # On other processors the training differs a little, so that the risk may find the run before its layers do.
    assert "uniform_attention" in {finding.kind for finding in namespace["faulty_monitor"].diagnosis.findings}
    assert attnwatch.PruningPlan.of(namespace["pruned"].model).num_removed == 16
    assert not any(cut.taken_back for cut in namespace["pruning"].cuts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run_or_are_marked(page):
    """Python blocks outside of the pages that run are fragments, and say so."""
    runs = page in (README, TUTORIAL, *GUIDES)
    for block in blocks(page):
        if "python" in block.info:
            assert block.info == FRAGMENT or (runs and block.info == "python"), f"{page.name}, line {block.line}"
            compile(block.code, str(page), "exec")


def test_commands_exist(capsys):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    missing = []
    for page in PAGES:
        for code in snippets(page):
            missing += [f"make {name}" for name in re.findall(r"\bmake ([a-z-]+)$", code) if name not in targets]
            missing += [
                f"attnwatch {name}" for name in re.findall(r"^attnwatch ([a-z]+)", code) if name not in commands
            ]
            missing += [
                f"python -m {name}"
                for name in re.findall(r"\bpython -m (benchmarks\.[a-z_]+)", code)
                if importlib.util.find_spec(name) is None
            ]
    assert not missing


def test_paths_exist():
    folders = "attnwatch|benchmarks|docs|examples|tests|tools"
    for page in PAGES:
        for code in snippets(page):
            for path in re.findall(rf"^(?:python )?((?:{folders})/[\w./-]*)$", code):
                assert (ROOT / path).exists(), f"{page.name}: {path}"
    for file in (*ROOT.glob("attnwatch/**/*.py"), *ROOT.glob("tests/**/*.py")):
        for path in re.findall(r"docs/[a-z/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{file.name}: {path}"


def snippets(page: Path) -> Iterator[str]:
    """Inline code, and the lines of shell blocks without their comments."""
    text = page.read_text(encoding="utf-8")
    yield from CODE.findall(BLOCK.sub("", text))
    for block in blocks(page):
        if block.info == "bash":
            yield from (line.partition("#")[0].strip() for line in block.code.splitlines())


def test_every_public_name_is_in_the_reference():
    shown = set()
    for page in (DOCS / "reference").glob("*.md"):
        shown |= set(re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert "attnwatch.explain" in shown
    assert {*attnwatch.__all__, *CALLBACKS} - {name.rpartition(".")[2] for name in shown} == set()


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
