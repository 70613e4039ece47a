"""From the desired number of workers to starts, drains and kills on devices. Pure."""
