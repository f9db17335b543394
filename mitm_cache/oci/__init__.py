"""What a request to a registry means. Pure: no I/O, no sockets."""
