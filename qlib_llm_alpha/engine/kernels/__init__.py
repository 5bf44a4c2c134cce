"""Windowed operators on tiles, compiled once for this machine; ``registry`` says what a kernel is."""
