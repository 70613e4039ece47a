"""Compares configurations: which changes apply without a restart. Pure.

There are three kinds of settings. The controller's own settings change at once. Settings that workers read at start-up
change by a rolling update. Settings that the balancer reads at start-up need a restart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.model_settings import Model
from configs.settings import Settings
from configs.text import clip

#: Settings that only the controller reads.
_TOP = ("min_workers", "max_workers")
_WORKERS = ("start_timeout_s", "drain_timeout_s", "share_after_s")
#: Settings of a model that the balancer reads too. They keep their old values, so that all programs agree.
_BALANCERS = ("engine", "loras", "defaults", "quality", "limits", "cold_start_proxy")
_BALANCERS_BATCHING = ("mode",)
_BALANCERS_SCALING = ("slo", "look_back_period_s", "rate_window_s")
_MAX_VALUE = 60


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The effect of a new configuration. The texts name settings with their old and new values."""

    #: The settings in force from now on.
    settings: Settings
    applied: tuple[str, ...]
    rolling: tuple[str, ...]
    needs_restart: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{word}: {'; '.join(texts)}"
            for word, texts in (
                ("applied", self.applied),
                ("by new workers", self.rolling),
                ("needs a restart", self.needs_restart),
            )
            if texts
        ]
        return ". ".join(parts) or "nothing has changed"


def diff_settings(old: Settings, new: Settings) -> ConfigChange:
    """Compare the settings in force (`old`) with those of the file (`new`)."""
    models = {
        name: _model(model, new.models[name]) if name in new.models else model for name, model in old.models.items()
    }
    top = {name: getattr(new, name) for name in _TOP}
    workers = old.workers.model_copy(update={name: getattr(new.workers, name) for name in _WORKERS})
    settings = old.model_copy(update={**top, "workers": workers, "models": models})
    before, after, requested = _flat(old), _flat(settings), _flat(new)
    done = {
        key: _describe(key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }
    left = [_describe(key, after.get(key), requested.get(key)) for key in _differing(settings, after, requested)]
    new_names = [f"models.{name} is new" for name in new.models if name not in old.models]
    removed = [f"models.{name} is gone" for name in old.models if name not in new.models]
    live = [text for key, text in done.items() if _is_live(key)]
    rolling = [text for key, text in done.items() if not _is_live(key)]
    return ConfigChange(settings, tuple(live), tuple(rolling), (*new_names, *removed, *left))


def generation(settings: Settings, model: str) -> str:
    """Return a digest of the settings that the model's workers read at start-up."""
    tree = settings.models[model].model_dump(mode="json", exclude={"scaling", "gpu_memory"})
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def _model(old: Model, new: Model) -> Model:
    """Return the new settings, with the old values of those that the balancer reads."""
    unchanged = {name: getattr(old, name) for name in _BALANCERS if name in Model.model_fields}
    batching = new.batching.model_copy(update={name: getattr(old.batching, name) for name in _BALANCERS_BATCHING})
    scaling = new.scaling.model_copy(update={name: getattr(old.scaling, name) for name in _BALANCERS_SCALING})
    return new.model_copy(update={**unchanged, "batching": batching, "scaling": scaling})


def _is_live(key: str) -> bool:
    parts = key.split(".")
    return parts[0] != "models" or parts[2:3] in (["scaling"], ["gpu_memory"])


def _differing(settings: Settings, now: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the settings that need a restart, except those of added or removed models."""
    names = {f"models.{name}." for name in settings.models}
    keys = [key for key in sorted({*now, *wanted}) if now.get(key) != wanted.get(key)]
    both = {prefix for prefix in names if any(key.startswith(prefix) for key in wanted)}
    return [key for key in keys if not key.startswith("models.") or any(key.startswith(prefix) for prefix in both)]


def _flat(settings: Settings) -> dict[str, Any]:
    """Return every setting by its dotted name."""
    found: dict[str, Any] = {}

    def walk(prefix: str, tree: Mapping[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                walk(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = value

    walk("", settings.model_dump(mode="json"))
    return found


def _describe(key: str, old: object, new: object) -> str:
    return f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)
    return clip(text, _MAX_VALUE)
