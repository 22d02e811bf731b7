"""What runs a VLM more than once and compares."""
