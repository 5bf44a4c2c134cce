"""Panels (days x instruments) as plain arrays, and what is measured on them day by day."""
