"""The control loop and everything in the controller that does input or output."""
