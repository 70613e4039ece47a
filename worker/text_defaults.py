"""The checkpoint's defaults for texts that were accepted while no worker of their model was connected."""

from __future__ import annotations

import msgspec

from wire.inputs import TextInputs
from wire.messages import EngineInfo


def with_checkpoint_defaults(inputs: TextInputs, info: EngineInfo) -> TextInputs:
    """Return the inputs with the checkpoint's values of the parameters that nobody has set, where it has them."""
    defaults = info.text.defaults if info.text is not None else None
    values = {name: getattr(defaults, name, None) for name in inputs.sampling.unset}
    known = {name: value for name, value in values.items() if value is not None}
    return msgspec.structs.replace(inputs, sampling=msgspec.structs.replace(inputs.sampling, **known, unset=()))
