"""The small floor shared by kernel, servers and clients: errors, wire, port, serving, config."""
