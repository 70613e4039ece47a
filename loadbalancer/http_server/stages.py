"""The stages of a connection's input. Plain numbers: they are compared several times per request."""

from __future__ import annotations

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
