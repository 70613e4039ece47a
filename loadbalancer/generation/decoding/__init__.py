"""Decoding of source images, in processes of their own that can be killed and whose CPU time and memory are limited."""
