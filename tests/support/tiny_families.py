"""Tiny pipelines of families that run in the generic engine, with random weights: one function per family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaConfig, T5GemmaEncoder, T5GemmaModuleConfig

from tests.support.tiny_pipelines import digits, lists, separate, word_tokenizer

#: Words of the tokenizer that stand for the special tokens of the real ones.
_VOCABULARY = 32
_HIDDEN = 16
#: Sizes of the rotary embedding of a Qwen text model with heads of 8.
_ROPE = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}


def _autoencoder(channels: int = 4, levels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
    )


def _t5() -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=_VOCABULARY, d_model=_HIDDEN, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def _clip() -> transformers.CLIPTextModel:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_HIDDEN,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            projection_dim=_HIDDEN,
        )
    )


def _gemma() -> transformers.Gemma2Model:
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=_VOCABULARY,
            hidden_size=_HIDDEN,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def _qwen_vl() -> transformers.Qwen2_5_VLForConditionalGeneration:
    sizes = {"hidden_size": _HIDDEN, "intermediate_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **sizes,
            "vocab_size": _VOCABULARY,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": _ROPE,
        },
        vision_config={**sizes, "depth": 1, "num_heads": 2, "out_hidden_size": _HIDDEN},
        vision_end_token_id=1,
        vision_start_token_id=2,
        vision_token_id=3,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def _qwen3(layers: int = 2) -> transformers.Qwen3Model:
    return transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=_VOCABULARY,
            hidden_size=_HIDDEN,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def _deep_compression() -> diffusers.AutoencoderDC:
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(0,) * 6,
        decoder_layers_per_block=(0,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate",
    )


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=_HIDDEN,
        sample_size=16,  # a checkpoint for 512 x 512
    )
    return diffusers.SanaPipeline(
        word_tokenizer(), _gemma(), _deep_compression(), transformer, FlowMatchEulerDiscreteScheduler()
    )


def _pixart(cls: Any) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=32,  # a checkpoint for 256 x 256
        caption_channels=_HIDDEN,
    )
    return cls(word_tokenizer(), _t5(), _autoencoder(), transformer, diffusers.DDIMScheduler())


def prx() -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        patch_size=1,
        in_channels=4,
        context_in_dim=8,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[2, 2],
    )
    sizes = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "layer_types": ["full_attention"],
    }
    text = T5GemmaConfig(encoder=T5GemmaModuleConfig(**sizes), is_encoder_decoder=False, **sizes)
    return diffusers.PRXPipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(),
        T5GemmaEncoder(text.encoder),
        word_tokenizer(),
        _autoencoder(),
        default_sample_size=256,
    )


def kandinsky5() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=_HIDDEN,
        in_text_dim2=_HIDDEN,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(1, 1, 2),
    )
    return diffusers.Kandinsky5T2IPipeline(
        transformer,
        _autoencoder(),
        _qwen_vl(),
        word_tokenizer(),
        _clip(),
        word_tokenizer(),
        FlowMatchEulerDiscreteScheduler(),
    )


def _qwen_autoencoder() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _qwen_image(cls: Any) -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_HIDDEN,
        axes_dims_rope=(8, 4, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return cls(scheduler, _qwen_autoencoder(), _qwen_vl(), word_tokenizer(), transformer)


def flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _HIDDEN,  # the outputs of three layers
        axes_dims_rope=[4, 4, 4, 4],
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return diffusers.Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, _qwen3(27), word_tokenizer(), transformer
    )


def hunyuan() -> Any:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=_HIDDEN,
        text_embed_2_dim=_HIDDEN,
        rope_axes_dim=(4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=128,
        scaling_factor=0.5,
    )
    return diffusers.HunyuanImagePipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae,
        _qwen_vl(),
        word_tokenizer(),
        _t5(),
        word_tokenizer(),
        transformer,
        AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    )


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=8,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=_HIDDEN,
    )
    return diffusers.Lumina2Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), _autoencoder(), _gemma(), word_tokenizer()
    )


def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=32,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=_HIDDEN,
        out_channels=4,
        pos_embed_max_size=256,
    )
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=_VOCABULARY,
            d_model=_HIDDEN,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            is_encoder_decoder=False,
        )
    )
    return diffusers.AuraFlowPipeline(
        word_tokenizer(), text, _autoencoder(), transformer, FlowMatchEulerDiscreteScheduler()
    )


def ovis() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_HIDDEN,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.OvisImagePipeline(
        FlowMatchEulerDiscreteScheduler(), _autoencoder(), _qwen3(), word_tokenizer(), transformer
    )


def bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_HIDDEN,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    return diffusers.BriaPipeline(
        transformer, FlowMatchEulerDiscreteScheduler(), _autoencoder(), _t5(), word_tokenizer()
    )


def _flux(cls: Any, channels: int, **more: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_HIDDEN,
        pooled_projection_dim=_HIDDEN,
        axes_dims_rope=(4, 4, 8),
    )
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(),
        text_encoder=_clip(),
        tokenizer=word_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=word_tokenizer(),
        transformer=transformer,
        **more,
    )


def flux_controlnet() -> Any:
    controlnet = diffusers.FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_HIDDEN,
        pooled_projection_dim=_HIDDEN,
        axes_dims_rope=[4, 4, 8],
    )
    return _flux(diffusers.FluxControlNetPipeline, 16, controlnet=controlnet)


def krea2() -> Any:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=_HIDDEN,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    sizes = {"hidden_size": _HIDDEN, "intermediate_size": 16}
    text = transformers.Qwen3VLConfig(
        text_config={
            **sizes,
            "vocab_size": _VOCABULARY,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        vision_config={**sizes, "depth": 1, "num_heads": 2, "out_hidden_size": _HIDDEN},
    )
    return diffusers.Krea2Pipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        _qwen_autoencoder(),
        transformers.Qwen3VLModel(text).eval(),
        word_tokenizer(),
        transformer,
        text_encoder_select_layers=(0, 1),
    )


def flux2() -> Any:
    sizes = {"hidden_size": _HIDDEN, "num_hidden_layers": 30, "num_attention_heads": 2, "intermediate_size": 16}
    text = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "vocab_size": _VOCABULARY, "num_key_value_heads": 1, **sizes},
        vision_config={"model_type": "pixtral", "image_size": 30, "patch_size": 6, **sizes, "num_hidden_layers": 1},
        image_token_index=1,
    )
    klein = flux2_klein()
    return diffusers.Flux2Pipeline(
        klein.scheduler,
        klein.vae,
        transformers.Mistral3ForConditionalGeneration(text),
        word_tokenizer(),
        klein.transformer,
    )


def pix2pix() -> Any:
    parts = digits().components
    unet = diffusers.UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 8})
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        **{**parts, "unet": unet, "scheduler": diffusers.EulerAncestralDiscreteScheduler()},
        requires_safety_checker=False,
    )


#: Families by name.
TINY_FAMILIES: dict[str, Callable[[], Any]] = {
    "sana": sana,
    "pixart_alpha": lambda: _pixart(diffusers.PixArtAlphaPipeline),
    "pixart_sigma": lambda: _pixart(diffusers.PixArtSigmaPipeline),
    "prx": prx,
    "kandinsky5": kandinsky5,
    "qwen": lambda: _qwen_image(diffusers.QwenImagePipeline),
    "qwen_image": lambda: _qwen_image(diffusers.QwenImageImg2ImgPipeline),
    "flux2_klein": flux2_klein,
    "flux2": flux2,
    "krea2": krea2,
    "z_image_image": lambda: diffusers.ZImageImg2ImgPipeline(**lists().components),
    "chroma_image": lambda: diffusers.ChromaImg2ImgPipeline(**separate().components),
    "pix2pix": pix2pix,
    "hunyuan": hunyuan,
    "lumina2": lumina2,
    "aura_flow": aura_flow,
    "ovis": ovis,
    "bria": bria,
    "flux_fill": lambda: _flux(diffusers.FluxFillPipeline, 16 + 16 + 256),
    "flux_control": lambda: _flux(diffusers.FluxControlPipeline, 32),
    "flux_controlnet": flux_controlnet,
}


def save(name: str, folder: Path) -> None:
    """Write the family's pipeline, with the same weights at each call."""
    torch.manual_seed(8)
    pipeline = TINY_FAMILIES[name]()
    pipeline.save_pretrained(folder)
    if name == "prx":  # its loader expects the configuration of encoder and decoder
        T5GemmaConfig(encoder=pipeline.text_encoder.config).save_pretrained(folder / "text_encoder")
