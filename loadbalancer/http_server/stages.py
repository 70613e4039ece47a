"""The stages of a connection's input."""

from __future__ import annotations

from enum import IntEnum


class Stage(IntEnum):
    """What the input of a connection is at."""

    #: Nothing has arrived yet.
    NEW = 0
    #: Between two requests.
    IDLE = 1
    HEAD = 2
    BODY = 3
    #: The request is complete, and its response is not.
    HANDLING = 4
    #: An error response is due, after which the connection is closed.
    REFUSED = 5
    #: Input is discarded until the connection is closed.
    LINGERING = 6


# As globals: members of an enum are slow to look up.
NEW, IDLE, HEAD, BODY, HANDLING, REFUSED, LINGERING = Stage
