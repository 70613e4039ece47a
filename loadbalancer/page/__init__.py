"""The page for people: its files, what it shows of the past, and its live data."""
