"""The doctor: looks at a node or at the cache host, and names the cure of what is wrong there."""
