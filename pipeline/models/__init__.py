"""The towers: open_clip architectures, built so that DeepSpeed can initialise and shard them.

towers.py   an architecture's configuration, by name or inline, checked
scale.py    the learned temperature, bounded in the forward pass
clip.py     ClipModel: pixels and tokens -> Features
"""
