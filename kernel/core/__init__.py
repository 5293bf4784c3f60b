"""The kernel as a pure state machine: no I/O, no clock, no threads. See `core.Core`."""
