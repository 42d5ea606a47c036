"""The watchdog: starts lost workers again, ends frozen engines, and says why a batch is stuck."""
