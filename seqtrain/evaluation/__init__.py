"""What a trained model is worth: scores, predictions, intervals and paired tests."""
