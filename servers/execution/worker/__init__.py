"""One process per loaded model version, forked from the zygote."""
