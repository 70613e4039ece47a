"""The paths, bodies and results of a profile's requests, by what its clients ask for."""

from __future__ import annotations

import base64
import json
from typing import Any

from scripts.chaos_lib.fault_plan import PlannedRequest
from scripts.chaos_lib.profiles import TIMEOUT_S, Profile

GENERATE, PREDICT, CHAT = "/v1/images/generations", "/predict", "/v1/chat/completions"


def path_of(profile: Profile, request: PlannedRequest) -> str:
    """Return the path of the request."""
    if profile.kind == "call":
        return f"/v1/models/{profile.name}:predict"
    if profile.kind == "text":
        return CHAT
    return PREDICT if request.mode == "predict" else GENERATE


def body_of(profile: Profile, request: PlannedRequest, *, streamed: bool, timed: bool) -> dict[str, Any]:
    """Return the JSON body. `timed`: with a time limit."""
    common = {"priority": request.priority} | ({"timeout_s": TIMEOUT_S} if timed else {})
    if profile.kind == "call":
        return {"instances": calls(request)} | common
    if profile.kind == "text":
        return _chat(request) | common | ({"stream": True} if streamed else {})
    body = {
        "prompt": request.prompt,
        "seed": request.seed,
        "num_inference_steps": request.steps,
        "size": request.size,
        "reproducible": request.reproducible,
    }
    body |= {"n": request.n} if request.mode != "predict" else {}
    return body | common | ({"stream": True, "partial_images": 3} if streamed else {})


def calls(request: PlannedRequest) -> list[dict[str, int]]:
    """Return the instances of a request for calls."""
    return [
        {"points": int(request.size), "steps": request.steps, "seed": request.seed + index}
        for index in range(request.n)
    ]


def _chat(request: PlannedRequest) -> dict[str, Any]:
    messages = [{"role": "user", "content": request.prompt}]
    return {"messages": messages, "seed": request.seed, "max_tokens": request.steps, "n": request.n}


def results_of(answer: dict[str, Any]) -> list[bytes]:
    """Return the images, the results of calls, or the texts of a complete answer."""
    if "choices" in answer:
        ordered = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        return [choice["message"]["content"].encode() for choice in ordered]
    if "predictions" in answer:
        return [json.dumps(each).encode() for each in answer["predictions"]]
    encoded = [item["b64_json"] for item in answer["data"]] if "data" in answer else [answer["image"]]
    return [base64.b64decode(one) for one in encoded]
