"""From shards on disk to batches of tensors, in an order that is a pure function of the seed.

    tar.py        reads one tar archive: member headers, sample boundaries, truncation
    shards.py     which tars a data path means, and where the samples lie in them; the place to add remote storage
    samples.py    ShardSet: shards as one random-access sequence of ``Sample``; each read is one byte range
    plan.py       which sample is read at which step by which rank; pure numpy, no state
    augment.py    bytes -> picture -> uint8 view; the random parameters of a view are drawn before it is made
    tokenizer.py  captions -> token ids, for whichever text tower the model has
    drops.py      what could not be used, counted by cause and bounded
    loader.py     train_batches: all of the above behind one iterator, in worker processes
    evalset.py    EvalSet: labelled or captioned test sets in CLIP_benchmark's layout

Three promises hold for the whole room, each by construction and each with a test:

- The sequence of global batches depends on the seed, the shards' sizes, and the batch size; never on the number of
  ranks or workers. Step ``n`` is found by arithmetic, so a resumed run reads on where the other one stopped.
- A sample's view and caption depend on (seed, epoch, sample key) alone.
- A sample that cannot be used is replaced by another one, chosen deterministically, and reported: cause, shard, key.

``tar``, ``shards``, ``samples``, ``plan`` and ``drops`` never import torch, so that the shard tools may use them.
"""
