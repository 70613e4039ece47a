"""From a parsed request to tasks, and the updates of the tasks under way."""
