"""The decoder process: reads requests from stdin, writes results to stdout, and ends with its stdin.

A file that takes too long ends the process by SIGXCPU. The balancer starts and kills decoders (`decoder_pool`).
"""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
import time
import warnings

from setproctitle import setproctitle

from loadbalancer.generation.decoding.messages import (
    DecodeRequest,
    DecodeResult,
    RejectedImage,
    encode,
    output_pixels,
    read_request,
)
from loadbalancer.generation.decoding.pixels import ImageRejected, decode_images

#: Memory of the interpreter, its libraries and the files, and of each pixel of a file and of its result. Decoders need
#: up to 12 bytes per pixel at a time.
_BASE_BYTES = 512 << 20
_BYTES_PER_PIXEL = 20


def main() -> int:
    """Serve requests until the end of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the balancer, which then ends its decoders
    warnings.simplefilter("ignore")  # Pillow's are about the client's file
    setproctitle("muster decoder")
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)  # it writes no files
    with contextlib.suppress(BrokenPipeError):  # the balancer has gone
        while (request := read_request(sys.stdin.buffer)) is not None:
            sys.stdout.buffer.writelines(encode(handle(request)))
            sys.stdout.buffer.flush()
    return 0


def handle(request: DecodeRequest) -> DecodeResult:
    """Decode within the limits of CPU time and memory."""
    # The limit counts from the start of the process, in whole seconds.
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + request.cpu_limit_s))
    pixels = request.limits.max_source_pixels + output_pixels(request.limits, request.size)
    _limit(resource.RLIMIT_AS, _BASE_BYTES + _BYTES_PER_PIXEL * pixels)
    try:
        return decode_images(
            request.image,
            request.mask,
            request.limits,
            size=request.size,
            use_alpha_as_mask=request.use_alpha_as_mask,
        )
    except ImageRejected as rejected:
        return RejectedImage(rejected.param, rejected.reason)
    except MemoryError:
        return RejectedImage("image", "decoding it takes too much memory")


def _limit(kind: int, soft: int) -> None:
    """Set the soft limit, at most the hard one. Some systems do not know all kinds."""
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
