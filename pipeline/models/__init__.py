"""The towers and the heads on them: open_clip architectures, built so that DeepSpeed can initialise and shard them.

towers.py      an architecture's configuration, by name or inline, checked; its towers
projection.py  taking a tower's projection out of it
heads.py       UniCLIP's f_A, g_I, g_T; independent features; SimCLR's projector
scale.py       the learned temperature and other bounded numbers
text.py        text towers without padding
draws.py       patch dropout by step and sample, whoever computes it
model.py       ClipModel: pixels and tokens -> Features
clip.py        a run's configuration -> its ClipModel
weights.py     files of weights, of several layouts -> a model; blends of models
names.py       parameter names here and in open_clip
tuning.py      locked towers, factors on the learning rate, layer-wise decay
align.py       two image towers that start in the same cone
fold.py        a model with heads -> the plain model that computes the same evaluation features
"""
