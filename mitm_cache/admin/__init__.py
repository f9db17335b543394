"""The admin listener: probes, numbers and the status of a running service, off the path of pulls."""
