"""Tiny pipelines for the generic engine, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from configs.model_parts import BUILTIN_DIR
from configs.model_sections import Defaults, Limits
from configs.model_settings import Model
from wire.inputs import SOURCES, GenerationMode, ImageInputs
from worker.engine import EngineRequest, TaskError
from worker.engines.diffusion.generic.engine import GenericEngine
from worker.engines.diffusion.generic.row import GenericRow

SIZE = 32
_WORDS = ("<pad>", "</s>", "<unk>", "0", "1", "a", "the", "red", "blue", "green", "seven", "digit", "in", "ink")


def digits() -> StableDiffusionPipeline:
    """The built-in model."""
    return StableDiffusionPipeline.from_pretrained(
        BUILTIN_DIR / "digits", dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )


def controlnet() -> ControlNetModel:
    """A ControlNet for the built-in model. A new one has zero output layers, so randomize them."""
    torch.manual_seed(1)
    made = ControlNetModel.from_unet(digits().unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.02)
    torch.nn.init.normal_(made.controlnet_cond_embedding.conv_out.weight, std=0.2)
    return made


def consistency() -> LatentConsistencyModelPipeline:
    """The built-in model with a UNet that reads the guidance scale."""
    torch.manual_seed(2)
    parts = digits().components
    unet = UNet2DConditionModel.from_config({**parts["unet"].config, "time_cond_proj_dim": 32})
    scheduler = LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return LatentConsistencyModelPipeline(**{**parts, "unet": unet, "scheduler": scheduler})


def large() -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL whose autoencoder overflows in half precision."""
    torch.manual_seed(7)
    parts = digits().components
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=parts["text_encoder"].config.hidden_size + 32,
        norm_num_groups=8,
        attention_head_dim=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    text = CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), "hidden_size": 32, "projection_dim": 32})
    return StableDiffusionXLPipeline(
        vae=_autoencoder(4),
        text_encoder=parts["text_encoder"],
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=parts["tokenizer"],
        tokenizer_2=parts["tokenizer"],
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )


def classes() -> DiTPipeline:
    """A class-conditional pipeline of one size."""
    torch.manual_seed(3)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIZE // 8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    made = DiTPipeline(transformer, _autoencoder(4), DDIMScheduler())
    made.register_to_config(id2label={7: "white shark, shark"})  # otherwise it is not saved
    return made


def unconditional() -> DDPMPipeline:
    """An unconditional pixel-space pipeline."""
    torch.manual_seed(4)
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet, DDPMScheduler())


def separate() -> ChromaPipeline:
    """Calls its transformer twice per step, with arguments without a batch dimension."""
    torch.manual_seed(5)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    text = T5Config(
        vocab_size=len(_WORDS), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(4),
        text_encoder=T5EncoderModel(text),
        tokenizer=word_tokenizer(),
        transformer=transformer,
    )


def lists() -> ZImagePipeline:
    """Passes its transformer lists of images and of texts of any length."""
    torch.manual_seed(6)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token, std=0.02)
    text = Qwen3Config(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(4),
        text_encoder=Qwen3Model(text),
        tokenizer=word_tokenizer(),
        transformer=transformer,
    )


def _autoencoder(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words; its chat template repeats the messages."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    )


# ---- models for the engine

#: Pipelines of the built-in model's parts, by name.
BUILT_IN = {
    "text": "StableDiffusionPipeline",
    "image": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
#: Pipelines of the built-in model and a ControlNet.
CONTROLLED = {
    "control": "StableDiffusionControlNetPipeline",
    "control_image": "StableDiffusionControlNetImg2ImgPipeline",
    "control_inpaint": "StableDiffusionControlNetInpaintPipeline",
}
#: All others.
MADE: dict[str, Callable[[], Any]] = {
    "consistency": consistency,
    "large": large,
    "classes": classes,
    "unconditional": unconditional,
    "separate": separate,
    "lists": lists,
}
KINDS = (*BUILT_IN, *CONTROLLED, *MADE)


def model_of(kind: str, folder: Path, **changes: Any) -> Model:
    """Return the configuration of a model of this kind; its files are written to the folder."""
    usual: dict[str, Any] = {
        "path": "builtin:digits",
        "pipeline": {**BUILT_IN, **CONTROLLED}.get(kind),
        "defaults": Defaults(size=f"{SIZE}x{SIZE}", steps=4, guidance_scale=3.0),
        "limits": Limits(min_side=8),
    }
    if kind in CONTROLLED:
        controlnet().save_pretrained(folder)
        usual["controlnet"] = str(folder)
    elif kind in MADE:
        MADE[kind]().save_pretrained(folder)
        usual["path"] = str(folder)
    return Model(**{**usual, **changes})


def engine_of(model: Model) -> GenericEngine:
    engine = GenericEngine(model, "cpu")
    engine.load()
    return engine


def request(mode: GenerationMode = "text", **changes: Any) -> ImageInputs:
    """Return a request with guidance and the checkpoint's own scheduler by default."""
    usual = ImageInputs(
        "the red digit 1", SIZE, SIZE, steps=5, guidance_scale=3.0, seed=1, scheduler="default", mode=mode
    )
    return msgspec.structs.replace(usual, **changes)


def sources_of(inputs: ImageInputs) -> list[bytes]:
    """Return the source images of the mode: seeded noise, and a mask of the left half."""
    levels = np.random.default_rng(inputs.seed).integers(0, 256, (inputs.height, inputs.width, 3), np.uint8)
    mask = np.zeros((inputs.height, inputs.width), np.uint8)
    mask[:, : inputs.width // 2] = 255
    return [levels.tobytes(), mask.tobytes()][: SOURCES[inputs.mode]]


def admit(engine: GenericEngine, *requested: ImageInputs) -> list[GenericRow]:
    """Return rows for these requests; raise on rejection."""
    rows = []
    for row in engine.admit([EngineRequest(inputs, sources_of(inputs)) for inputs in requested]):
        if isinstance(row, TaskError):
            raise row
        assert isinstance(row, GenericRow)
        rows.append(row)
    return rows


def finish(engine: GenericEngine, *rows: GenericRow) -> None:
    """Step the rows in one batch until all are finished."""
    while unfinished := [row for row in rows if row.step < row.steps]:
        engine.step(unfinished)


def pixels(row: GenericRow) -> np.ndarray[Any, Any]:
    """Return the row's image before rounding to 8 bits."""
    generated = row.thread.result().pixels
    assert isinstance(generated, np.ndarray)
    return generated
