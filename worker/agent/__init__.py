"""The agent of a machine (`python -m worker --agent`): it runs workers there on the orders of the controller."""
