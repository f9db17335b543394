"""What is kept on disk, and how: blobs are files, links say which repository holds them, an index finds both fast."""
