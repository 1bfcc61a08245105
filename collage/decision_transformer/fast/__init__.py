"""The same, faster."""
