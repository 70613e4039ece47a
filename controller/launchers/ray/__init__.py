"""Workers on a Ray cluster.

`gateway` is a program with the Ray driver, `launcher` is its counterpart in the controller. On a node, `worker_actor`
runs a worker as a child of `process_supervisor`.
"""
