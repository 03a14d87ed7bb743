"""The offline job: attribution stacks of whole archives, as a Lightning predict loop over WebDataset shards."""
