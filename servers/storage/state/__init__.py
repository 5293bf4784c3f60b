"""Small state: documents with history, leases, locks."""
