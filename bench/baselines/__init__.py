"""What subspan is timed against: the code people copy and the best plain PyTorch, each written from its description."""
