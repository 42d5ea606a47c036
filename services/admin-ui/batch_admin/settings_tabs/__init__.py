"""The tabs of the settings page, one module each."""
