"""Prefer short answers over wordy ones: DPO of a small Llama with a tokenizer made here, in trl."""

import copy
import random
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer

from attnwatch import TrainingCheckup
from attnwatch.transformers import AttentionMonitor

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
THINGS = ["apple", "car", "house", "shoe", "bird", "door", "hat", "ball"]
FILLERS = ["well", "so", "maybe", "probably", "honestly", "basically"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
OTHER = ["the", "is", "what", "colour", "?", ".", "it", "think", "i"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *COLOURS, *THINGS, *FILLERS, *OTHER]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_pair(rng: random.Random) -> dict[str, str]:
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    fillers = rng.choices(FILLERS, k=rng.randint(1, 4))
    short = f" {colour} ."
    wordy = f" {' '.join(fillers)} i think it is {rng.choice(COLOURS)} ."
    return {"prompt": f"the {thing} is {colour} . what colour is the {thing} ?", "chosen": short, "rejected": wordy}


def build_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def supervise(policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[dict[str, str]]) -> None:
    """Train on both kinds of answers for some steps: the start of a preference training."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for start in range(0, 60 * 16, 16):
        texts = [pair["prompt"] + pair[kind] for pair in pairs[start : start + 16] for kind in ("chosen", "rejected")]
        batch = tokenizer([text + " </s>" for text in texts], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print("supervised loss:", round(loss.item(), 3))


def make_reference(policy: LlamaForCausalLM) -> LlamaForCausalLM:
    reference = copy.deepcopy(policy)
    return reference.requires_grad_(False).eval()


def train(steps: int) -> TrainingCheckup:
    set_seed(0)
    rng = random.Random(0)
    pairs = [write_pair(rng) for _ in range(1200)]
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer)
    supervise(policy, tokenizer, pairs)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=3e-5,
            lr_scheduler_type="constant",
            beta=0.1,
            max_length=48,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=10,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = DPOTrainer(
            model=policy,
            ref_model=make_reference(policy),
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            callbacks=[monitor],
        )
        trainer.train()
    return monitor.checkup
