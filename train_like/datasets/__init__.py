"""Datasets of chest X-rays, as their publishers lay them out, to shards.

Each module reads one layout and has a function `read`, which lists what the dataset's tables tell. What is the same for
all of them (which samples are taken, how pictures are read, how shards are written) is in `selection`, `loading` and
`writing`.
"""
