"""From batches and a model to a trained run: losses, metrics, optimizers, checkpoints, trainer."""
