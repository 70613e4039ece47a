"""Other model servers beside Muster, under equal loads."""
