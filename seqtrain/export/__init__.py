"""Trained models as files that work elsewhere: bundles, ONNX graphs, torch programs."""
