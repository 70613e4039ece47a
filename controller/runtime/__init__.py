"""The control loop, and the controller's input and output: processes, devices, signals, console, balancer."""
