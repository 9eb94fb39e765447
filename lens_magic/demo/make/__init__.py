"""What made the demo model: its world, its documents, its tokenizer, its training and its tests."""
