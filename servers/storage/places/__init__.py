"""Where models come from and go to besides this host's own folders: one module per place."""
