"""What the autoscaler decides in one tick. Pure."""
