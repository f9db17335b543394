"""Processes: one supervisor, which has the sockets and the account, and the workers that serve."""
