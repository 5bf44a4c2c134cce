"""Propose factors, screen them, and admit those that chance does not explain; every trial is counted."""
