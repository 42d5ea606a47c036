"""Validation of what annotators hand in: rules that judge, and the duty that applies them."""
