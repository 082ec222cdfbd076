"""Valid configs: schema, checks and overrides of the user. Imports no torch."""
