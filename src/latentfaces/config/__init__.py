"""What is valid: the schema of the configs, its checks and what the user overrides. Imports no torch."""
