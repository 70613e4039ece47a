"""The request scheduler. Pure: a new file here may reach no clock, socket or thread."""
