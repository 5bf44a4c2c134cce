"""Experts, and gates that weigh them by the state of the market."""
