"""What an optimized model needs to run."""
