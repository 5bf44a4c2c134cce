"""Gated strategies and the A-share exchange."""
