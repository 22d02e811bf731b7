"""The testbed's model: its architecture and tokenizer, what it is trained on, and the training."""
