"""The gateway: the HTTP face of LLM OS, a client of the OS like any other."""
