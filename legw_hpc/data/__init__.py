"""Data: HDF5 shards, the global order in which they are read, and the loader that reads ahead."""
