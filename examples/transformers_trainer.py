"""Fine-tune a sentence encoder with the transformers Trainer and the monitor, and remove half of its heads.

    python examples/transformers_trainer.py [--steps N] [--lora]
    tensorboard --logdir transformers-trainer/runs

With --lora the encoder is frozen and LoRA adapters are trained (PEFT). Base and adapters are cut together. The pruned
model is saved in transformers-trainer/pruned; `attnwatch.load_pruned` loads it.
"""

import argparse
import random
from pathlib import Path

from sentences import code_or_prose, collate_with, minilm_directory
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import attnwatch
from attnwatch.transformers import AttentionMonitor, HeadPruning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lora", action="store_true", help="train adapters, with the encoder frozen")
    parser.add_argument("--out", type=Path, default=Path("transformers-trainer"))
    options = parser.parse_args()

    examples = code_or_prose()
    random.Random(0).shuffle(examples)
    encoder = minilm_directory()
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2, trust_remote_code=False)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        targets = ["query", "value", "attention.output.dense"]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=targets, modules_to_save=["classifier"]))

    monitor = AttentionMonitor()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(options.out),
            max_steps=options.steps,
            per_device_train_batch_size=32,
            learning_rate=5e-4 if options.lora else 5e-5,
            logging_steps=20,
            eval_strategy="steps",
            eval_steps=100,
            save_strategy="no",
            report_to="tensorboard",
            remove_unused_columns=False,
        ),
        train_dataset=examples[512:],
        eval_dataset=examples[:512],
        data_collator=collate_with(AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)),
        callbacks=[monitor, HeadPruning(0.5)],  # the only change
    )
    trainer.train()
    print(f"\nloss on 512 held-out sentences: {trainer.evaluate()['eval_loss']:.3f}")
    print(f"attention: {monitor.diagnosis}")
    model = model.merge_and_unload() if options.lora else model
    print(attnwatch.PruningPlan.of(model))
    attnwatch.save_pruned(model, options.out / "pruned")


if __name__ == "__main__":
    main()
