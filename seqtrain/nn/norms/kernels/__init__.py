"""Masked norms in one piece: the same numbers in fewer passes over memory."""
