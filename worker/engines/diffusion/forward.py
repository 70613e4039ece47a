"""The shared forward pass: rows are laid out as passes, and guidance is applied to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from cachetools import LRUCache

from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.row import DiffusionRow

#: Samples `(B, ...)`, float32 timesteps `(B,)` and conditions, each `(B, ...)`, to outputs `(B, ...)`.
DenoiseFn = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]

#: Size of the passes of reproducible requests: their rounding must not depend on the batch size.
FIXED_PASSES = 8
#: More row combinations than this in a batch are laid out again at each step.
_MAX_LAYOUTS = 4


class PassLayout:
    """The position of each row in a forward pass: negative passes, then positive, then unguided rows.

    The conditions do not change between steps and are concatenated once.
    """

    def __init__(self, rows: Sequence[DiffusionRow], passes: int | None) -> None:
        """`passes`: pad to this number by repeating the last pass."""
        self._rows = rows
        guided = [n for n, row in enumerate(rows) if row.guidance is not None]
        plain = [n for n, row in enumerate(rows) if row.guidance is None]
        places = [(n, 0) for n in guided] + [(n, 1) for n in guided] + [(n, 0) for n in plain]
        self._guided = len(guided)
        self._order = guided + plain
        places += places[-1:] * ((passes or 0) - len(places))
        self._places = [n for n, _ in places]
        self._conditions = {
            name: torch.cat([rows[n].conditions[name][which : which + 1] for n, which in places])
            for name in rows[0].conditions
        }
        scales = [row.guidance for row in rows if row.guidance is not None]
        self._scale = torch.cat(scales) if scales else None

    def run(self, denoise: DenoiseFn) -> list[torch.Tensor]:
        """Return the guided output of each row, `(1, ...)`, in the order of the rows."""
        samples = [row.sampler.model_input() for row in self._rows]
        timesteps = [row.timesteps[row.step] for row in self._rows]
        output = denoise(
            # Kernels, and so rounding, depend on the memory layout: make it the same for all latents.
            torch.cat([samples[n] for n in self._places]).contiguous(),
            torch.stack([timesteps[n] for n in self._places]),
            self._conditions,
        )
        outputs = self._apply_guidance(output)
        ordered = dict(zip(self._order, outputs, strict=True))
        return [ordered[n] for n in range(len(self._rows))]

    def _apply_guidance(self, output: torch.Tensor) -> list[torch.Tensor]:
        count = self._guided
        outputs = output[2 * count : count + len(self._rows)]
        if self._scale is not None:
            negative, positive = output[:count], output[count : 2 * count]
            guided = negative + self._scale * (positive - negative)
            outputs = torch.cat([guided.to(output.dtype), outputs])
        return [outputs[n : n + 1] for n in range(len(outputs))]


class ForwardPass:
    """Runs the denoiser for rows of one shape, without changing the rows."""

    def __init__(self, denoise: DenoiseFn, pad_to: Callable[[int], int] | None = None) -> None:
        """`pad_to` maps a number of passes to the padded number; None disables padding."""
        self._denoise = denoise
        self._pad_to = pad_to
        self._layouts: LRUCache[tuple[DiffusionRow, ...], PassLayout] = LRUCache(_MAX_LAYOUTS)

    def __call__(self, rows: Sequence[DiffusionRow], *, fixed_size: bool = False) -> list[torch.Tensor]:
        """Return the guided output of each row. With `fixed_size`, all passes have `FIXED_PASSES` rows."""
        if not fixed_size:
            passes = None if self._pad_to is None else self._pad_to(sum(row.passes for row in rows))
            return self._layout(tuple(rows), passes).run(self._denoise)
        outputs: list[torch.Tensor] = []
        for group in _split_rows(rows, FIXED_PASSES):
            outputs += self._layout(group, FIXED_PASSES).run(self._denoise)
        return outputs

    def forget(self, row: DiffusionRow) -> None:
        for rows in [rows for rows in self._layouts if row in rows]:
            del self._layouts[rows]

    def _layout(self, rows: tuple[DiffusionRow, ...], passes: int | None) -> PassLayout:
        if rows not in self._layouts:
            self._layouts[rows] = PassLayout(rows, passes)
        return self._layouts[rows]


def _split_rows(rows: Sequence[DiffusionRow], passes: int) -> list[tuple[DiffusionRow, ...]]:
    groups: list[tuple[DiffusionRow, ...]] = []
    room = 0
    for row in rows:
        if row.passes > room:
            groups.append(())
            room = passes
        groups[-1] += (row,)
        room -= row.passes
    return groups
