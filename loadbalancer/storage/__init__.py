"""The SQLite file: its thread, its tables, its row types."""
