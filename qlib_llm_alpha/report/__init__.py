"""Figures and tables made from plain frames; knows no Qlib and no recorder."""
