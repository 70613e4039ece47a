"""The settings, their defaults and their error messages. Imports no other package of ours."""
