"""Feature maps on disk: schema, writer, reader, verification. Knows arrays and nothing of models."""
