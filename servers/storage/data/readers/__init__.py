"""One reader for each format of data: from files to record batches, in bounded memory."""
