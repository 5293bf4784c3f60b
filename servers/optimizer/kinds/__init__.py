"""The kinds of jobs: what a good spec is, what each needs, and the code that does it."""
