"""Facts about HTTP messages. Pure: no I/O, no sockets."""
