"""What is wrong, in words, and what to do next: one look at everything that can be wrong.

Reads the event log, telemetry, the read models' checkpoint and disks; writes nothing. The command
line and the admin API say the same.
"""
