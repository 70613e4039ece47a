"""Train the built-in "digits" model, a small Stable Diffusion pipeline, from scratch on two CPU cores.

    python -m scripts.digits.train --out worker/builtin/digits

There are three parts: a byte-pair tokenizer, an autoencoder (64 x 64 RGB <-> 4 x 8 x 8 latents), and text encoder and
UNet together. Finished parts are stored in `--work`, and an interrupted run resumes at the first missing one. The
result is a `StableDiffusionPipeline` folder in fp16 safetensors. Evaluate it with `python -m scripts.digits.evaluate`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.digits.data import all_prompts, describe, paint, sample_pair, shift, stroke_masks

TOKENS = 16
MERGES = 88
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def bars() -> Progress:
    """Return progress bars that show the loss."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 50) -> LambdaLR:
    """Linear warm-up, then a cosine decay to 2 % of the peak rate."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def train_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE in CLIP's format: 256 bytes, their word-end forms, merges, two special tokens."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(all_prompts(), trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]][:MERGES]
    symbols = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges), BOS, EOS]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS).save_pretrained(folder)


def train_vae(folder: Path, steps: int, batch: int, seed: int) -> None:
    """Train with L1, MSE and a small KL term. Norms have two groups: one per channel would erase the colour."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    masks, _ = stroke_masks()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4)
    rate = schedule(optimizer, steps)
    with bars() as progress:
        bar = progress.add_task("autoencoder ", total=steps, note="")
        for _ in range(steps):
            chosen = shift(masks[rng.integers(len(masks), size=batch)], rng)
            pairs = [sample_pair(rng) for _ in range(batch)]
            images = paint(chosen, [p[0] for p in pairs], [p[1] for p in pairs])
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
            error = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
            loss = error + 1e-4 * posterior.kl().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            rate.step()
            progress.update(bar, advance=1, note=f"error {error.item():.4f}")
    sample, _ = encode_images(vae, masks, np.zeros(len(masks), np.int64), 1, rng)
    vae.register_to_config(scaling_factor=round(1.0 / float(sample.std()), 4))
    vae.save_pretrained(folder)


@torch.no_grad()
def encode_images(
    vae: AutoencoderKL, masks: torch.Tensor, digits: np.ndarray, copies: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """Return latents `(N * copies, 4, 8, 8)`, unscaled, with a prompt for each."""
    latents, prompts = [], []
    for _ in range(copies):
        for start in range(0, len(masks), 64):
            chosen = shift(masks[start : start + 64], rng)
            pairs = [sample_pair(rng) for _ in range(len(chosen))]
            images = paint(chosen, [p[0] for p in pairs], [p[1] for p in pairs])
            latents.append(vae.encode(images).latent_dist.mean)
            named = zip(digits[start : start + 64], pairs, strict=True)
            prompts += [describe(int(d), ink, paper, rng) for d, (ink, paper) in named]
    return torch.cat(latents), prompts


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a text encoder of two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Return a UNet of 2.2 million parameters for latents of 4 x 8 x 8."""
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule with velocity prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def train_denoiser(work: Path, steps: int, batch: int, seed: int) -> None:
    """Train text encoder and UNet on cached latents; return the moving average of the weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 1)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae")
    masks, digits = stroke_masks()
    latents, prompts = encode_images(vae, masks, digits, 12, rng)
    latents = latents * vae.config.scaling_factor
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
    empty = tokenizer("", padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids[0]

    text_encoder, unet = new_text_encoder(tokenizer), new_unet()
    net = torch.nn.ModuleList([text_encoder, unet])
    averages = copy.deepcopy([text_encoder, unet])
    average = torch.nn.ModuleList(averages)
    noise_schedule = new_scheduler()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    rate = schedule(optimizer, steps)
    with bars() as progress:
        bar = progress.add_task("text and UNet", total=steps, note="")
        for step in range(steps):
            index = torch.from_numpy(rng.integers(len(latents), size=batch))
            clean, tokens = latents[index], ids[index].clone()
            tokens[torch.from_numpy(rng.random(batch) < 0.1)] = empty
            noise = torch.randn_like(clean)
            t = torch.randint(0, noise_schedule.config.num_train_timesteps, (batch,))
            hidden = text_encoder(tokens).last_hidden_state
            predicted = unet(noise_schedule.add_noise(clean, noise, t), t, hidden).sample
            loss = functional.mse_loss(predicted, noise_schedule.get_velocity(clean, noise, t))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rate.step()
            keep = min(0.995, step / (step + 10))
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, 1 - keep)
            progress.update(bar, advance=1, note=f"loss {loss.item():.4f}")
    for part, name in zip(averages, ("text_encoder", "unet"), strict=True):
        part.save_pretrained(work / name)


def assemble(work: Path, out: Path) -> None:
    """Assemble the parts as an fp16 pipeline folder."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.vae, pipeline.unet):
        part.register_to_config(_name_or_path="")  # do not publish a folder of the training machine
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("worker/builtin/digits"), help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("data/train_digits"), help="folder of the finished parts")
    parser.add_argument("--vae-steps", type=int, default=1800)
    parser.add_argument("--unet-steps", type=int, default=3600)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--unet-batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer").exists():
        train_tokenizer(args.work / "tokenizer")
    if not (args.work / "vae").exists():
        train_vae(args.work / "vae", args.vae_steps, args.vae_batch, args.seed)
    if not (args.work / "unet").exists():
        train_denoiser(args.work, args.unet_steps, args.unet_batch, args.seed)
    assemble(args.work, args.out)


if __name__ == "__main__":
    main()
