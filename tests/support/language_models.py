"""Language models whose answers are known, and tokenizers to ask them with."""

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from attnwatch.explain import Templates
from tests.support.models import seeded

WORDS = ["[PAD]", "[UNK]", "<s>", "the", "sky", "is", "blue", "green", "red", "yes", "no", "85%", "because"]
WORDS += ["it", "reflects", "sure", "Answer:", "grass"] + [f"w{index}" for index in range(30)]
ID = {word: index for index, word in enumerate(WORDS)}
QUESTION = {"prompt": "the sky is", "choices": ["green", "blue", "red"], "answer": "blue"}


def word_tokenizer(*, bos: bool = False, pad: bool = True) -> hf.PreTrainedTokenizerFast:
    """A word is a token."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", ID["<s>"])])
    special = {"unk_token": "[UNK]"} | ({"bos_token": "<s>"} if bos else {}) | ({"pad_token": "[PAD]"} if pad else {})
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_tokenizer(text: str, size: int) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE with merges learned from the text; no special tokens but the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<end>"], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=size, **options))
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def bigrams(follows: dict[str, dict[str, float]], *, positions: int = 64) -> hf.LlamaForCausalLM:
    """A Llama whose next token depends on the last one only: after each word the probabilities that are given.

    Attention and MLP write nothing, so that hidden states are the embedding, one-hot, times the square root of the
    width (RMSNorm). Other words have next to no probability.
    """
    size = len(WORDS)
    model = seeded(
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=size,
                hidden_size=size,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=4,
                rms_norm_eps=1e-12,
                max_position_embeddings=positions,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
    )
    with torch.no_grad():
        for projection in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            projection.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.fill_(-20.0)
        for word, nexts in follows.items():
            for following, probability in nexts.items():
                model.lm_head.weight[ID[following], ID[word]] = torch.tensor(probability).log() / size**0.5
    return model


TEMPLATES = Templates(
    yes_no="{prompt} {answer} sure {reply}",
    percentage="{prompt} {answer} Answer: {reply}",
    reason="{prompt} {answer} because {reply}",
)


def number_tokenizer() -> hf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({str(number): number for number in range(50)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2", unk_token="0"
    )


def code_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, as byte-level BPE without merges; <pad> is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, **{character: index for index, character in enumerate(alphabet, 1)}}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


BYTE_TOKENIZER = code_tokenizer()
