"""Agents: confidence, risk preference, selection by category, and the market context they read."""
