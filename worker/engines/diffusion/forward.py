"""One forward pass for many rows: who stands where in it, and what guidance makes of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.row import DiffusionRow

#: Samples `(B, ...)`, float32 timesteps `(B,)` and conditions, each `(B, ...)`, to outputs `(B, ...)`.
DenoiseFn = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]

#: Passes of a forward pass whose rounding must not depend on how many requests share it.
FIXED_PASSES = 8
#: Arrangements to remember: a worker with more shapes than this in its batch makes them anew at each step.
_MAX_LAYOUTS = 4


class PassLayout:
    """The place of each row in a forward pass: negative passes first, then positive ones, then rows of one pass.

    What the denoiser is told beside latents and time does not change from step to step, and is put together once.
    """

    def __init__(self, rows: Sequence[DiffusionRow], passes: int | None) -> None:
        """`passes` repeats the last pass until there are so many."""
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
        """The guided output of each row, `(1, ...)`, in the order of the rows."""
        samples = [row.sampler.model_input() for row in self._rows]
        timesteps = [row.timesteps[row.step] for row in self._rows]
        output = denoise(
            # Kernels, and so the rounding, go by the layout in memory: it is the same wherever the latents come from.
            torch.cat([samples[n] for n in self._places]).contiguous(),
            torch.stack([timesteps[n] for n in self._places]),
            self._conditions,
        )
        outputs = self._apply_guidance(output)
        ordered = dict(zip(self._order, outputs, strict=True))
        return [ordered[n] for n in range(len(self._rows))]

    def _apply_guidance(self, output: torch.Tensor) -> list[torch.Tensor]:
        """An output for each row, in the order of the layout; what was repeated to fill the pass is left out."""
        count = self._guided
        outputs = output[2 * count : count + len(self._rows)]
        if self._scale is not None:
            negative, positive = output[:count], output[count : 2 * count]
            guided = negative + self._scale * (positive - negative)
            outputs = torch.cat([guided.to(output.dtype), outputs])
        return [outputs[n : n + 1] for n in range(len(outputs))]


class ForwardPass:
    """Runs the denoiser for rows of one shape. It changes no row."""

    def __init__(self, denoise: DenoiseFn, pad_to: Callable[[int], int] | None = None) -> None:
        """`padded` gives the number of passes that so many are to be filled up to; without it they stay as they are."""
        self._denoise = denoise
        self._pad_to = pad_to
        self._layouts: dict[tuple[DiffusionRow, ...], PassLayout] = {}

    def __call__(self, rows: Sequence[DiffusionRow], *, fixed_size: bool = False) -> list[torch.Tensor]:
        """The guided output of each row. `fixed`: in passes of one size, so that no row's bits depend on the others."""
        if not fixed_size:
            passes = None if self._pad_to is None else self._pad_to(sum(row.passes for row in rows))
            return self._layout(tuple(rows), passes).run(self._denoise)
        outputs: list[torch.Tensor] = []
        for group in _split_rows(rows, FIXED_PASSES):
            outputs += self._layout(group, FIXED_PASSES).run(self._denoise)
        return outputs

    def forget(self, row: DiffusionRow) -> None:
        """Drop what is kept for this row's sake."""
        self._layouts = {rows: layout for rows, layout in self._layouts.items() if row not in rows}

    def _layout(self, rows: tuple[DiffusionRow, ...], passes: int | None) -> PassLayout:
        layout = self._layouts.pop(rows, None) or PassLayout(rows, passes)
        self._layouts[rows] = layout
        while len(self._layouts) > _MAX_LAYOUTS:
            del self._layouts[next(iter(self._layouts))]
        return layout


def _split_rows(rows: Sequence[DiffusionRow], passes: int) -> list[tuple[DiffusionRow, ...]]:
    """The rows in order, cut so that no group takes more passes than this."""
    groups: list[tuple[DiffusionRow, ...]] = []
    room = 0
    for row in rows:
        if row.passes > room:
            groups.append(())
            room = passes
        groups[-1] += (row,)
        room -= row.passes
    return groups
