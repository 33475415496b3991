"""The comparison of norms: same seeds, same weights, same batches, only the norm differs."""
