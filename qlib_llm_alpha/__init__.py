"""Factors, agents and a gate for Microsoft Qlib; see README.md for the map."""

__version__ = "0.1.0"
