"""From what is published to shards: one module a source, each with a function that writes a data folder."""
