"""The devices and the child processes of one machine: of the controller's, and of each machine with an agent."""
