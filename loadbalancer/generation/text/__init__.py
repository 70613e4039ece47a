"""From a parsed text request to tasks, and the texts under way."""
