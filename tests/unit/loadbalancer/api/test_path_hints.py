"""What an unknown path is answered."""

from __future__ import annotations

import pytest

from loadbalancer.api.path_hints import method_hint, unknown_path

KNOWN = ["/v1/images/generations", "/v1/images/edits", "/v1/models", "/v1/models/{model}", "/healthz", "/predict"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/images/generations", "Did you mean /v1/images/generations?"),
        ("/v1/v1/models", "Did you mean /v1/models?"),
        ("/v1/images/generations/", "Did you mean /v1/images/generations?"),
        ("/V1/Models", "Did you mean /v1/models?"),
        ("/v1/image/generation", "Did you mean /v1/images/generations?"),
        ("/health/z", "Did you mean /healthz?"),
        ("/v1/images/variations", "Variations are not supported"),
        ("/predict", "calls are sent to /v1/models/{model}:predict"),
        ("/sdapi/v1/txt2img", "Images are made by /v1/images/generations"),
        ("/api/chat", "Chats are answered by /v1/chat/completions"),
        ("/v2/repository/index", "Models are listed by /v1/models"),
        ("/v1/models/digits:explain", "do not explain"),
        ("/docs/", "Did you mean /docs?"),
        ("/redoc", "described at /docs"),
        ("/wp-login.php", "/wp-login.php."),
        ("/" + "x" * 5000, "..."),
        ("/\x1b[31m\n", r"/\x1b[31m\n."),
        ("", "Unknown path: GET ."),
    ],
)
def test_hint(path: str, hint: str) -> None:
    text = unknown_path("GET", path, KNOWN)
    assert hint in text
    assert len(text) < 250
    assert text.isprintable()


def test_call_at_the_path_of_a_model_is_told_the_right_one() -> None:
    assert ":predict" in method_hint("POST", "/v1/models/count/predict")
    assert method_hint("DELETE", "/v1/models/count") == method_hint("POST", "/healthz") == ""
