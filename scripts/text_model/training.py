"""The model and its training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.text_model.chat import END, END_OF_TEXT
from scripts.text_model.dataset import IGNORED, Batch, BatchGenerator
from scripts.text_model.tokenizer import save_tokenizer

MAX_POSITIONS = 2048
#: Tokens of a batch.
BATCH_TOKENS = 2048
_ROW = 256
#: One in this many batches has rows of this length, for long conversations.
_LONG_EVERY, _LONG_ROW = 10, 1024
_WARM_UP_STEPS = 40
_PEAK_RATE, _PEAK_RATE_EMBEDDING = 8e-3, 4e-3


def new_config(tokenizer: Tokenizer, hidden: int = 192, layers: int = 3) -> LlamaConfig:
    """Return the configuration: heads of 64, one of them for keys and values."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        attention_dropout=0.0,
        use_cache=True,
    )


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the mean cross entropy of the tokens that the model is to write."""
    hidden = model.model(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    wanted = batch.labels[:, 1:]
    chosen = wanted != IGNORED
    loss: torch.Tensor = functional.cross_entropy(model.lm_head(hidden[:, :-1][chosen]), wanted[chosen])
    return loss


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak rate: a linear warm-up, then linear to zero."""
    warm_up = min(_WARM_UP_STEPS, steps)
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def new_optimizers(model: LlamaForCausalLM, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for the embedding and the norms.

    Muon needs about half the steps of AdamW here.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed_tokens" not in name else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=rate * _PEAK_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate * _PEAK_RATE_EMBEDDING, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def train(
    tokenizer: Tokenizer,
    config: LlamaConfig,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
    batch_tokens: int = BATCH_TOKENS,
    bfloat16: bool = True,
    initial: LlamaForCausalLM | None = None,
    rate: float = 1.0,
) -> LlamaForCausalLM:
    """Train on `steps` batches, from scratch or from the `initial` weights.

    `on_step` gets the number of the step and its loss. `rate`: factor of the learning rates.
    `bfloat16`: multiply matrices in it, which is faster on processors that have it.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config) if initial is None else initial
    optimizers = new_optimizers(model, rate)
    schedules = [LambdaLR(each, functools.partial(rate_factor, steps=steps)) for each in optimizers]
    short = BatchGenerator(tokenizer, seed + 1, max(1, batch_tokens // _ROW), _ROW)
    long = BatchGenerator(tokenizer, seed + 2, max(1, batch_tokens // _LONG_ROW), _LONG_ROW)
    model.train()
    for step in range(steps):
        source = long if step % _LONG_EVERY == _LONG_EVERY - 1 else short
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(model, source.next_batch())
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        on_step(step, loss.item())
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Save weights, configuration and tokenizer as every engine reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = dtype
    model.config.architectures = ["LlamaForCausalLM"]
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # The tied output layer is left out: some engines read `model.embed_tokens.weight` only.
    weights = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
