"""Short videos from one phone to another: live status, wakeups and verified uploads, at the lowest cost."""

__version__ = "0.1.0"
