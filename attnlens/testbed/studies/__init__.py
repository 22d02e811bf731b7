"""What is measured on the testbed, where the truth is known."""
