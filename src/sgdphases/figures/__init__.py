"""Figures in the format of the papers."""
