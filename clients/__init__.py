"""Clients of LLM OS: the command line here, other languages in their own folders."""
