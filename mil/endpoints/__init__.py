"""What is predicted: targets, loss, measures, words."""
