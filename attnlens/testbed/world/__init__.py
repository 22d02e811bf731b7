"""The testbed's scenes, the questions about them, and their true answers."""
