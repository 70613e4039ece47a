"""Traffic of many shapes for comparing scaling policies: generators, and a catalog of scenarios made with them."""
