"""Folders that are damaged or mean harm: nothing of them runs, nothing is asked or downloaded, and words say why."""

import ast
import builtins
import contextlib
import json
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from attnwatch import ConfigurationError, load_pruned, prune_heads
from attnwatch.cli import main
from attnwatch.report.analysis import load_analysis
from tests.support.models import bert, llama
from tests.support.pages import TEXT, saved_folder, with_vocabulary
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Folders of an unpruned Llama, a pruned one and a classifier, and a text."""
    folder = tmp_path_factory.mktemp("sound")
    for name, heads in (("llama", {}), ("pruned", {0: [2, 3]})):
        model = with_vocabulary(hf.LlamaForCausalLM, llama(), max_position_embeddings=160)
        if heads:
            prune_heads(model, heads)
        saved_folder(model, folder / name)
    saved_folder(with_vocabulary(hf.BertForSequenceClassification, bert()), folder / "bert")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def at(sound, tmp_path) -> Callable[[str], Path]:
    return lambda name="llama": Path(shutil.copytree(sound / name, tmp_path / name))


@pytest.fixture(autouse=True)
def _nothing_is_asked_or_reached(monkeypatch):
    def refused(*args, **options):
        raise AssertionError("somebody asked on the terminal, or looked into the network")

    monkeypatch.setattr(builtins, "input", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def inspected(folder: Path, text: Path, capsys, tmp_path, *options: str) -> tuple[int, str]:
    """Exit code and message."""
    out = ["--out", str(tmp_path / "page.html"), "--sequences", "2", "--tokens", "12"]
    code = main(["inspect", str(folder), "--text", str(text), *out, *options])
    return code, capsys.readouterr().err


def change(folder: Path, name: str = "config.json", **entries: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | entries))


def write_harm(folder: Path) -> Path:
    """Code that leaves a file behind where it is run."""
    mark = folder.parent / "harm-was-done"
    code = f"open({str(mark)!r}, 'w').close()\n"
    names = ["Own", "Config", "Model", "Tokenizer"]
    code += "".join(f"class {name}:\n    pass\n" for name in names)
    (folder / "harm.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{code}\ndef generate(*a, **k):\n    pass\n")
    return mark


AUTO_MAP = {
    "AutoConfig": "harm.Config",
    "AutoModel": "harm.Model",
    "AutoModelForCausalLM": "harm.Model",
    "AutoTokenizer": ["harm.Tokenizer", "harm.Tokenizer"],
}
CODE = {
    "of a known class": ({}, 0, ""),
    "of an unknown class": (
        {"architectures": ["Own"]},
        2,
        r"its config.json names the class 'Own'.*never runs code from a",
    ),
    "of an unknown type": ({"architectures": ["Own"], "model_type": "own"}, 2, "never runs code from a folder"),
    "elsewhere": (
        {"architectures": ["Own"], "auto_map": {"AutoModel": "a/b--harm.Model"}},
        2,
        "never runs code from a",
    ),
}


@pytest.mark.parametrize(("entries", "code", "message"), CODE.values(), ids=CODE)
def test_code_of_a_folder_is_not_run(sound, at, tmp_path, capsys, entries: dict, code: int, message: str):
    folder = at()
    mark = write_harm(folder)
    change(folder, auto_map=AUTO_MAP)
    change(folder, **entries)
    change(folder, "tokenizer_config.json", auto_map=AUTO_MAP)
    found, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
    assert found == code
    assert re.search(message, error)
    assert not mark.exists()
    with pytest.raises(ConfigurationError, match=r"`trust_remote_code`: load_pruned never runs code from a folder"):
        load_pruned(folder, trust_remote_code=True)
    assert not mark.exists()


def test_tokenizer_whose_code_lies_in_the_folder_is_not_loaded(sound, at, tmp_path, capsys):
    folder = at()
    mark = write_harm(folder)
    change(folder, "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Own")
    (folder / "tokenizer.json").unlink()
    code, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
    assert code == 2
    assert "has no tokenizer" in error
    assert not mark.exists()


def test_attention_of_the_hub_is_not_downloaded(sound, at, tmp_path, capsys):
    for entries in (
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "somebody/attention"},
        {"text_config": {"attn_implementation": {"": "somebody/attention"}}},
    ):
        folder = at()
        change(folder, **entries)
        code, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
        assert code == 2
        assert "its config.json requests code from the Hub" in error
        shutil.rmtree(folder)
    folder = at()
    change(folder, attn_implementation="somebody/attention")
    assert load_pruned(folder, attn_implementation="sdpa").config._attn_implementation == "sdpa"


class Harm:
    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self):
        return (open, (str(self._mark), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "index"])
def test_pickles_of_a_folder_are_not_run(at, tmp_path, name: str):
    folder, mark = at(), tmp_path / "harm-was-done"
    (folder / "model.safetensors").unlink()
    if name == "index":
        index = {"weight_map": {"model.norm.weight": "weights-1.bin"}, "metadata": {}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        name = "weights-1.bin"
    for write in (lambda file: pickle.dump(Harm(mark), file), lambda file: torch.save({"a": Harm(mark)}, file)):
        with open(folder / name, "wb") as file:
            write(file)
        with pytest.raises(ConfigurationError, match=rf"{name} holds no readable weights"):
            load_pruned(folder)
        assert not mark.exists()


def test_every_load_says_that_it_trusts_nothing():
    """`trust_remote_code=False` wherever an Auto class loads, `weights_only=True` wherever torch does."""
    wrong = []
    rooms = ("attnwatch", "benchmarks", "examples", "tools")
    for file in [path for room in rooms for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, options = ast.unparse(node.func.value), {each.arg: ast.unparse(each.value) for each in node.keywords}
            is_auto = node.func.attr == "from_pretrained" and "Auto" in owner
            if (is_auto and options.get("trust_remote_code") != "False") or (
                (owner, node.func.attr) == ("torch", "load") and options.get("weights_only") != "True"
            ):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


# Odd classes and sizes.

CLASSES = [
    *([name] for name in ("GenerationConfig", "AutoTokenizer", "AutoModel", "PreTrainedModel", "LlamaPreTrainedModel")),
    *(
        [name]
        for name in ("LlamaConfig", "__class__", "__dict__", "Nope", "pipeline", "torch", "models", "os.system", "")
    ),
    *([1, 2], [], {}, None, "LlamaForCausalLM", {"a": 1}, [None], [["LlamaForCausalLM"]], 3),
    *([name] for name in ("BertForMaskedLM", "T5ForConditionalGeneration", "ViTModel", "BertForMultipleChoice")),
]


@pytest.mark.parametrize("name", ["llama", "pruned"])
def test_odd_classes_end_in_words(sound, at, tmp_path, capsys, name: str):
    folder = at(name)
    for names in CLASSES:
        change(folder, architectures=names)
        code, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
        assert code == 2, names
        assert "attnwatch inspect: `" in error, names
        assert "Traceback" not in error


ODD = st.one_of(
    st.sampled_from([0, -1, 1, 3, 10**6, 10**12, 10**30, 1.5, 1e308, "", "x", "../x", "__class__", None, [], {}, True]),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4),
)
FIELDS = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "hidden_act", "rms_norm_eps", "rope_parameters", "model_type"),
    *("pad_token_id", "bos_token_id", "tie_word_embeddings", "attention_dropout", "dtype", "quantization_config"),
    *("attn_implementation", "num_labels", "id2label", "label2id", "is_encoder_decoder", "use_cache", "text_config"),
]


@given(st.sampled_from(["llama", "pruned"]), st.dictionaries(st.sampled_from(FIELDS), ODD, min_size=1, max_size=2))
@settings(max_examples=60)
def test_odd_configs_are_loaded_or_refused_in_words(sound, tmp_path_factory, name: str, entries: dict):
    folder = Path(shutil.copytree(sound / name, tmp_path_factory.mktemp("odd") / name))
    change(folder, **entries)
    with contextlib.suppress(ConfigurationError):
        load_pruned(folder)


SIZES = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, more than any model"),
    "vocabulary": ({"vocab_size": 10**10}, "parameters and .* but the weights beside it have"),
    "width": ({"hidden_size": 2**20}, "parameters and .* but the weights beside it have"),
}


@pytest.mark.parametrize("name", ["llama", "pruned"])
@pytest.mark.parametrize(("entries", "message"), SIZES.values(), ids=SIZES)
def test_what_would_not_fit_into_memory_is_refused_before_it_is_made(at, name: str, entries: dict, message: str):
    folder = at(name)
    change(folder, **entries)
    with pytest.raises(ConfigurationError, match=message):
        load_pruned(folder)


@pytest.mark.parametrize("names", [3, "x", [1], {"bad": "x"}, {"bad": 7}, {"bad": -1}, {"bad": 1.5}], ids=str)
def test_odd_names_of_labels_end_in_words(sound, at, tmp_path, capsys, names: object):
    folder = at("bert")
    change(folder, id2label={0: "bad", 1: "good"}, label2id=names)  # without the former it is made anew
    code, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
    assert code == 2
    assert re.search(r"attnwatch inspect: `.*(label2id|can't be loaded)", error)


def tiny(directory: Path, **options) -> Path:
    return saved_folder(with_vocabulary(hf.LlamaForCausalLM, llama(), **options), directory)


def is_read(folder: Path, text: Path, *, tokens: int = 12) -> bool:
    """Whether there is something to make a page of; otherwise words say why not."""
    with contextlib.suppress(ConfigurationError):
        return len(load_analysis(folder, text, num_sequences=2, num_tokens=tokens).batches) > 0
    return False


@pytest.mark.logs_warnings  # a model without layers has no attention
@pytest.mark.parametrize(
    "options", [{"num_hidden_layers": 0}, {"max_position_embeddings": 1}, {"vocab_size": 1}], ids=str
)
def test_tiny_models_end_in_a_page_or_in_words(sound, tmp_path, capsys, options: dict):
    folder = tiny(tmp_path / "tiny", **options)
    code, error = inspected(folder, sound / "text.txt", capsys, tmp_path)
    assert code in (0, 2)
    assert code == 0 or "attnwatch inspect: `" in error


@pytest.mark.parametrize(("name", "fewest"), [("llama", 5), ("bert", 1)])
def test_few_tokens_end_in_a_page_or_in_words(sound, tmp_path, capsys, name: str, fewest: int):
    for tokens in range(1, 6):
        if tokens < fewest:
            with pytest.raises(
                ConfigurationError, match=rf"`--tokens`: {tokens} tokens .* at least {fewest} are needed"
            ):
                load_analysis(sound / name, sound / "text.txt", num_sequences=2, num_tokens=tokens)
        else:
            assert is_read(sound / name, sound / "text.txt", tokens=tokens)
    code, _ = inspected(sound / name, sound / "text.txt", capsys, tmp_path, "--tokens", str(fewest))
    assert code == 0


TEXTS = {
    "nothing": (b"", False),
    "spaces": (b" \n\t\n", False),
    "no UTF-8": (b"\xff\xfe", False),
    "zeros": (b"\0" * 40, True),
    "one long line": (b"thing " * 4000, True),
    "byte order mark": (b"\xef\xbb\xbfa thing is a thing", True),
}


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_odd_texts_are_read_or_refused_in_words(sound, tmp_path, name: str):
    text = tmp_path / "text"
    for what, (content, is_text) in TEXTS.items():
        text.write_bytes(content)
        assert is_read(sound / name, text) == is_text, what
    for content in (b"a", b"\t\t1\n" * 9):
        text.write_bytes(content)
        is_read(sound / name, text)
    assert is_read(sound / name, sound / "text.txt", tokens=10**7)
    assert not is_read(sound / name, tmp_path)


# Damaged files.

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "pruning_plan.json"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = {
    "cut": cut,
    "empty": overwrite(b""),
    "noise": overwrite(bytes(range(256)) * 9),
    "null": overwrite(b"null"),
    "nested": overwrite(b"[" * 100_000 + b"]" * 100_000),
    "list": overwrite(b'[{"a": 1}]'),
    "strings": overwrite(b'{"architectures": "a", "num_heads": "b", "heads": {"c": "d"}, "format": 1}'),
    "folder": replace_by_folder,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_end_in_words(sound, at, damage: Callable):
    for name in FILES:
        folder = at("pruned")
        damage(folder / name)
        is_read(folder, sound / "text.txt")
        shutil.rmtree(folder)


HEADS = {
    "not a number": torch.tensor([torch.nan, 1.0]),
    "twice": torch.tensor([1.0, 1.0]),
    "negative": torch.tensor([-1.0, 1.0]),
    "beyond": torch.tensor([0.0, 400.0]),
    "table": torch.zeros(2, 2),
    "numbers as text": None,
}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_heads_in_weights_that_can_not_be_are_named(at, heads: torch.Tensor | None):
    folder = at("pruned")
    (folder / "pruning_plan.json").unlink()
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.kept_heads"
    state[name if heads is not None else "elsewhere.kept_heads"] = torch.zeros(1) if heads is None else heads
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigurationError, match=r"kept_heads is not an ascending list|where the model has 4 heads|is none of"
    ):
        load_pruned(folder)


def test_weights_that_are_missing_are_named_and_not_drawn(at):
    folder = at()
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.self_attn.q_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigurationError, match=r"the weights lack model.layers.1.self_attn.q_proj.weight, which would"
    ):
        load_pruned(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GenerationConfig", "LlamaModel", "AutoConfig", "PreTrainedConfig", "AutoTokenizer"])
def test_tokenizer_of_an_odd_class_ends_in_words(sound, at, capsys, name: str):
    folder = at("llama")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert main(["inspect", str(folder), "--text", str(sound / "text.txt"), "--out", str(folder / "page.html")]) == 2
    assert "has no tokenizer that transformers can load" in capsys.readouterr().err
