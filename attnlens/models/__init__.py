"""Loading models, building prompts, and knowing which key is which segment."""
