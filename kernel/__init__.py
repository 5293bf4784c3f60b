"""The kernel: routes messages and schedules calls; knows no model, no SQL, no HTTP."""
