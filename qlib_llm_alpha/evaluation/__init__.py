"""Walls between segments, scorecards of factors, and statistics with honest errors."""
