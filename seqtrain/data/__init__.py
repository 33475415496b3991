"""From FASTA files and label tables to batches of tokens. Never sees a model."""
