"""Write the state diagram in loadbalancer/DESIGN.md from the table that the balancer itself goes by."""

import re
from pathlib import Path

from loadbalancer.scheduling.task_state import TRANSITIONS

DESIGN = Path(__file__).parents[2] / "loadbalancer" / "DESIGN.md"
_BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def diagram() -> str:
    """The table as a Mermaid state diagram, in its Markdown block."""
    moves = [f"    {state.value} --> {to.value}" for state in TRANSITIONS for to in sorted(TRANSITIONS[state])]
    ends = [f"    {state.value} --> [*]" for state in TRANSITIONS if not TRANSITIONS[state]]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> queued", *moves, *ends, "```"])


if __name__ == "__main__":
    DESIGN.write_text(_BLOCK.sub(lambda _: diagram(), DESIGN.read_text()))
    print(f"wrote {DESIGN}")
