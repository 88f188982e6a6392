"""CHIP."""
