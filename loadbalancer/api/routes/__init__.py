"""The paths of the front door, one module per kind. They translate between HTTP and the hub, and decide nothing."""
