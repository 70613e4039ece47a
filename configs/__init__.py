"""What can be set, what it defaults to, and how a mistake is told. Imports nothing else of ours."""
