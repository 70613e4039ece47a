"""The SQLite database: its thread, tables and row types."""
