"""A callback of the transformers Trainer that makes weights nan."""

import torch
import transformers as hf


class Poison(hf.TrainerCallback):
    """Makes a weight nan at the beginning of step 6."""

    def on_step_begin(self, args, state, control, model=None, **options):
        if state.global_step == 6:
            with torch.no_grad():
                model.model.layers[1].self_attn.q_proj.weight[0, 0] = torch.nan
