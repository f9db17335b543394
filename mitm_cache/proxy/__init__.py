"""The doors: mitmproxy listens, speaks TLS and parses HTTP; our code decides, and moves the bytes."""
