"""What to say about a parameter that a request does not have: the right name, or the place where it belongs."""

from __future__ import annotations

from collections.abc import Collection

from configs.text import closest

#: What other programs and APIs call a parameter. The first name that the request has is meant.
_OTHER_NAMES = {
    **dict.fromkeys(("steps", "sampling_steps", "num_steps"), ("num_inference_steps",)),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance"), ("guidance_scale",)),
    **dict.fromkeys(("sampler", "sampler_name", "sampler_index", "sample_method"), ("scheduler",)),
    **dict.fromkeys(("width", "height", "image_size", "resolution"), ("size",)),
    **dict.fromkeys(("num_images", "num_images_per_prompt", "num_outputs", "batch_size", "n_iter"), ("n",)),
    **dict.fromkeys(("init_image", "init_images", "image_url", "input_image"), ("image", "images")),
    **dict.fromkeys(("mask_image", "mask_url"), ("mask",)),
    **dict.fromkeys(("denoising_strength", "prompt_strength", "image_strength"), ("strength",)),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_predict", "n_predict"), ("max_tokens", "max_output_tokens")),
    **dict.fromkeys(("repeat_penalty",), ("repetition_penalty",)),
    **dict.fromkeys(("stop_sequences",), ("stop",)),
    **dict.fromkeys(("prompt",), ("messages", "input")),
    **dict.fromkeys(("messages",), ("input", "prompt")),
    **dict.fromkeys(("timeout",), ("timeout_s",)),
    **dict.fromkeys(("input", "inputs", "instance", "data"), ("instances",)),
}
#: The member of a request that holds the client's own names, and what to say to one beside it.
_PLACES = {
    "instances": " Each input is an entry of 'instances'.",
    "body": " The parameters of the request are in 'body'.",
}


def parameter_hint(name: str, known: Collection[str]) -> str:
    """Return a sentence with a space before it, or an empty text. `known` are the parameters of the request."""
    others = [each for each in _OTHER_NAMES.get(name.lower(), ()) if each in known]
    if near := next(iter(others), None) or closest(name, known):
        return f" Did you mean '{near}'?"
    return next((text for place, text in _PLACES.items() if place in known), "")
