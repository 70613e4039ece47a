"""Measure what compression saves on the frames between the balancer and its workers, and what it costs.

    python -m scripts.bench.serving.compression --json scripts/bench/results/compression_cpu.json

Frames are results (PNG, WebP), source images as raw pixels, and latents as checkpoints have them: noise, and a smooth
image with little noise. `shuffled` stores the first bytes of all numbers, then the second bytes. `pays_below` is the
link speed at which zlib's time equals the time that it saves, with one core at each end.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scripts.harness.load import machine

ROOT = Path(__file__).resolve().parents[3]
_LEVEL = 1
#: Standard deviation of a camera's noise, of 255.
_GRAIN = 3.0
#: A megabit per second in bytes.
_MBIT = 1e6 / 8


def shuffled(data: bytes, width: int) -> bytes:
    """Return the bytes of numbers of this width by their place in the number."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def latents(dtype: torch.dtype, noise: float) -> bytes:
    """Return latents of an image of 1024x1024: a smooth image with this share of noise."""
    generator = torch.Generator().manual_seed(1)
    across = torch.linspace(-3, 3, 128)
    smooth = torch.sin(across)[None, None, :] * torch.cos(across)[None, :, None] * torch.arange(1, 5)[:, None, None]
    mixed = (1 - noise) * smooth + noise * torch.randn(4, 128, 128, generator=generator)
    return bytes(mixed.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())


def frames() -> dict[str, bytes]:
    """Return the frames by what they are."""
    picture = Image.open(ROOT / "docs" / "edits.png").convert("RGB").resize((1024, 1024))
    grain = np.random.default_rng(1).normal(0.0, _GRAIN, (1024, 1024, 3))
    photo = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8).tobytes()
    found = {"source image, raw pixels": picture.tobytes(), "source image, raw pixels of a camera": photo}
    for kind in ("PNG", "WEBP"):
        out = io.BytesIO()
        picture.save(out, kind)
        found[f"result, {kind}"] = out.getvalue()
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        for stage, noise in (("first steps", 1.0), ("last steps", 0.05)):
            data = latents(dtype, noise)
            found[f"latents {name}, {stage}"] = data
            found[f"latents {name}, {stage}, shuffled"] = shuffled(data, dtype.itemsize)
    return found


def cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of some calls."""
    took = []
    for _ in range(7):
        started = time.process_time()
        call()
        took.append(time.process_time() - started)
    return max(min(took), 1e-6)


def measure(data: bytes) -> Mapping[str, float | None]:
    """Return the share that is saved, and the link speed below which that pays."""
    packed = zlib.compress(data, _LEVEL)
    saved = len(data) - len(packed)
    cost_s = cpu_s(lambda: zlib.compress(data, _LEVEL)) + cpu_s(lambda: zlib.decompress(packed))
    return {
        "bytes": len(data),
        "saved_share": round(saved / len(data), 3),
        "cost_ms": round(1000 * cost_s, 2),
        "pays_below_mbit": round(saved / cost_s / _MBIT, 1) if saved > 0 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "library": f"zlib {zlib.ZLIB_RUNTIME_VERSION}, level {_LEVEL}"}
    result["frames"] = {name: measure(data) for name, data in frames().items()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
