"""Speed and memory of recording, measured side by side in one run."""
