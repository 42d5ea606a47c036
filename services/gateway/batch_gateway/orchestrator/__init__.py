"""What leads every batch from its submission to its files: planner, scheduler, reconciler,
finalizer, expiry, retention. One leader at a time works; a standby takes over."""
